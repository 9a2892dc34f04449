// bof4-bench-cuda: time per product on an NVIDIA GPU, of BOF4 types and of types of llama.cpp, in one run.
//
// A measurement is a graph of products of copies of the weight, which together are four times as large as the L2 cache,
// so that each product reads its weight from memory. It is timed by CUDA events on the stream of ggml's CUDA backend.
// Each round measures every type once; the median of the rounds is printed. A product includes the quantization of the
// activations.
#include "bench-products.h"
#include "bench-timing.h"
#include "bof4-format.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <sstream>
#include <stdexcept>

namespace {

#define BOF4_NAMES(NAME, name) #name " " #name "+opq "

const char * const USAGE = "usage: bof4-bench-cuda [options]\n"
                           "  --shapes LIST    models whose matrices are measured      (1b,8b,70b,moe)\n"
                           "  --columns LIST   columns of the activations, or tokens   (1,2,3,4,6,8,16,512)\n"
                           "  --types LIST     " BOF4_TYPES_CUDA(
                               BOF4_NAMES) "q4_0 iq4_nl iq4_xs q4_k mxfp4   (all)\n"
                                           "                   +opq: with outlier lists, 0.2 % of the weights\n"
                                           "  --rounds N       rounds; the median is printed           (15)\n"
                                           "  --csv FILE       also write the table as CSV\n"
                                           "  --device N       number of the GPU                       (0)\n"
                                           "  --check          only compare products with the CPU's\n"
                                           "  -h, --help\n";

#undef BOF4_NAMES

struct usage_error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

std::vector<std::string> split(const std::string & list) {
    std::vector<std::string> parts;
    std::stringstream stream(list);
    for (std::string part; std::getline(stream, part, ',');) {
        parts.push_back(part);
    }
    return parts;
}

int number(const std::string & text, int least) {
    size_t used = 0;
    int value = least - 1;
    try {
        value = std::stoi(text, &used);
    } catch (const std::logic_error &) {}
    if (used != text.size() || value < least) {
        throw usage_error("'" + text + "' is not a number from " + std::to_string(least) + " on");
    }
    return value;
}

struct options {
    std::vector<shape> shapes_;
    std::vector<int> columns;
    std::vector<weight_type> types;
    int rounds = 15;
    int device = 0;
    bool check_only = false;
    std::string csv;

    options(int argc, char ** argv) {
        std::string shape_list = "1b,8b,70b,moe", column_list = "1,2,3,4,6,8,16,512", type_list;
        for (int i = 1; i < argc; ++i) {
            const std::string name = argv[i];
            if (name == "--check") {
                check_only = true;
                continue;
            }
            if (++i == argc) {
                throw usage_error(name + " is unknown or lacks its value");
            }
            const std::string value = argv[i];
            if (name == "--shapes") {
                shape_list = value;
            } else if (name == "--columns") {
                column_list = value;
            } else if (name == "--types") {
                type_list = value;
            } else if (name == "--rounds") {
                rounds = number(value, 1);
            } else if (name == "--device") {
                device = number(value, 0);
            } else if (name == "--csv") {
                csv = value;
            } else {
                throw usage_error("unknown option " + name);
            }
        }
        for (const std::string & model : split(shape_list)) {
            const size_t before = shapes_.size();
            std::copy_if(shapes().begin(), shapes().end(), std::back_inserter(shapes_),
                [&](const shape & s) { return s.model == model; });
            if (shapes_.size() == before) {
                throw usage_error("no model '" + model + "': there are 1b, 8b, 70b and moe");
            }
        }
        for (const std::string & text : split(column_list)) {
            columns.push_back(number(text, 1));
        }
        if (type_list.empty()) {
            types = weight_types();
        }
        for (const std::string & name : split(type_list)) {
            auto found = std::find_if(
                weight_types().begin(), weight_types().end(), [&](const weight_type & t) { return t.name == name; });
            if (found == weight_types().end()) {
                throw usage_error("no type '" + name + "'");
            }
            types.push_back(*found);
        }
    }
};

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

ggml_backend_ptr backend_of(const char * name, int number) {
    ggml_backend_reg_t backend = ggml_backend_reg_by_name(name);
    if (!backend || (int) ggml_backend_reg_dev_count(backend) <= number) {
        throw std::runtime_error(std::string("there is no ") + name + " device " + std::to_string(number) +
            " (a GPU needs NVIDIA's driver: does nvidia-smi show it?)");
    }
    return ggml_backend_ptr(ggml_backend_dev_init(ggml_backend_reg_dev_get(backend, number), nullptr));
}

// Types that the GPU can compute. Prints the difference of their products from the CPU's; all_right: all are supported,
// and equal but for rounding.
std::vector<weight_type> checked_types(ggml_backend_t gpu, const options & opts, bool & all_right) {
    const shape small = { "", "", 256, 4096 };
    const shape mixture = { "", "", 64, 1024, 8, 2 };
    ggml_backend_ptr cpu = backend_of("CPU", 0);
    std::vector<weight_type> types;
    printf("products of %d x %d against the CPU's: error (NMSE) and largest difference, in units of their root mean "
           "square\n",
        (int) small.rows, (int) small.columns);
    for (const weight_type & type : opts.types) {
        printf("  %-11s", type.name.c_str());
        const encoded data(type, small, small.rows, 1), expert_data(type, mixture, mixture.experts * mixture.rows, 1);
        {
            rotating_weight weight(gpu, type, small, data, 1);
            if (!product_graph(gpu, weight, small, 1, 1).supported()) {
                printf(" not supported by this backend: left out\n");
                all_right = false;
                continue;
            }
        }
        bool right = true;
        const auto check = [&](const shape & s, const encoded & of, const char * what, int columns) {
            const difference d = compare(gpu, cpu.get(), type, s, of, columns);
            printf("  %3d %s %.1e %.4f", columns, what, d.nmse, d.largest);
            right = right && d.nmse < 5e-4; // false for NaN, too
        };
        for (int columns : { 1, 3, 8, 16, 512 }) {
            check(small, data, "columns", columns);
        }
        for (int tokens : { 1, 4, 64 }) {
            check(mixture, expert_data, "tokens", tokens);
        }
        printf("%s\n", right ? "" : "  WRONG");
        all_right = all_right && right;
        types.push_back(type);
        fflush(stdout);
    }
    return types;
}

struct row {
    const weight_type * type;
    double seconds;
    size_t bytes; // of weights and lists that are read
    double rate() const { return bytes / seconds; }
};

class table {
  public:
    table(const std::string & path, const bandwidth & memory) : memory(memory) {
        if (!path.empty()) {
            csv.reset(fopen(path.c_str(), "w"));
            if (!csv) {
                throw std::runtime_error(path + " cannot be written");
            }
            fprintf(csv.get(),
                "model,matrices,rows,row_length,columns,type,us,bytes,GB/s,share_of_read_bandwidth,"
                "per_byte_of_fastest_peer,speed_of_fastest_peer,TFLOP/s\n");
        }
    }

    void print(const shape & s, int columns, const std::vector<row> & rows) {
        double fastest_rate = 0, fastest = 0;
        for (const row & r : rows) {
            if (r.type->peer) {
                fastest_rate = std::max(fastest_rate, r.rate());
                fastest = std::max(fastest, 1 / r.seconds);
            }
        }
        printf("\n%s %s, %d x %d, %d %s%s", s.model.c_str(), s.matrices.c_str(), (int) s.rows, (int) s.columns, columns,
            s.is_mixture() ? "token" : "column", columns == 1 ? "" : "s");
        if (s.is_mixture()) {
            printf(", %d of %d experts each", (int) s.used, (int) s.experts);
        }
        printf("\n");
        printf("  %-11s %10s %9s %7s %14s %11s\n", "type", "us", "GB/s", "share", "per byte/peer", "speed/peer");
        for (const row & r : rows) {
            const double per_byte = fastest_rate > 0 ? r.rate() / fastest_rate : 0;
            const double speed = fastest > 0 ? 1 / r.seconds / fastest : 0;
            const double flops = 2.0 * s.rows * s.columns * columns * s.used / r.seconds;
            printf("  %-11s %10.2f %9.0f %6.1f%% %14.3f %11.3f\n", r.type->name.c_str(), r.seconds * 1e6,
                r.rate() * 1e-9, 100 * r.rate() / memory.read, per_byte, speed);
            if (csv) {
                fprintf(csv.get(), "%s,%s,%d,%d,%d,%s,%.3f,%zu,%.1f,%.4f,%.4f,%.4f,%.2f\n", s.model.c_str(),
                    s.matrices.c_str(), (int) s.rows, (int) s.columns, columns, r.type->name.c_str(), r.seconds * 1e6,
                    r.bytes, r.rate() * 1e-9, r.rate() / memory.read, per_byte, speed, flops * 1e-12);
            }
        }
        fflush(stdout);
        if (csv) {
            fflush(csv.get());
        }
    }

  private:
    struct closer {
        void operator()(FILE * file) const { fclose(file); }
    };
    bandwidth memory;
    std::unique_ptr<FILE, closer> csv;
};

struct candidate {
    const weight_type * type;
    size_t bytes; // of one copy
    rotating_weight weight;

    // In a graph: at least 16, so that its beginning and end do not matter; so many that they read four times the size of
    // the L2 cache, of a mixture, too; a multiple of the copies.
    int products(const shape & s, int64_t tokens, size_t l2_bytes) const {
        const size_t read = bytes * s.matrices_read(tokens) / s.experts;
        const int wanted = std::max(16, (int) (4 * l2_bytes / read) + 1), copies = (int) weight.copies();
        return (wanted + copies - 1) / copies * copies;
    }
};

void measure(ggml_backend_t gpu, const gpu_facts & facts, const std::vector<weight_type> & types, const shape & s,
    const options & opts, table & out) {
    std::vector<std::unique_ptr<candidate>> candidates;
    for (const weight_type & type : types) {
        const encoded data(type, s, 32, 1);
        const int copies = (int) (4 * facts.l2_bytes / data.bytes()) + 1;
        candidates.emplace_back(new candidate{ &type, data.bytes(), rotating_weight(gpu, type, s, data, copies) });
    }
    for (int columns : opts.columns) {
        std::vector<std::unique_ptr<product_graph>> graphs;
        for (const auto & c : candidates) {
            graphs.emplace_back(new product_graph(gpu, c->weight, s, columns, c->products(s, columns, facts.l2_bytes)));
        }
        std::vector<std::vector<double>> seconds(candidates.size());
        // a warm-up round of two passes: ggml captures a graph as a CUDA graph when it is computed the second time
        for (int round = -1; round < opts.rounds; ++round) {
            for (size_t i = 0; i < candidates.size(); ++i) {
                const double time = seconds_on_gpu(gpu, [&] { graphs[i]->enqueue(); }) / graphs[i]->products;
                if (round >= 0) {
                    seconds[i].push_back(time);
                }
            }
        }
        std::vector<row> rows;
        for (size_t i = 0; i < candidates.size(); ++i) {
            const size_t read = candidates[i]->bytes * s.matrices_read(columns) / s.experts;
            rows.push_back({ candidates[i]->type, median(seconds[i]), read });
        }
        out.print(s, columns, rows);
    }
}

int run(const options & opts) {
    ggml_backend_load_all();
    ggml_backend_ptr gpu = backend_of("CUDA", opts.device);
    const gpu_facts facts = select_gpu(opts.device);
    printf("%s, compute capability %s, L2 cache %.0f MB\n", facts.name.c_str(), facts.capability.c_str(),
        facts.l2_bytes * 1e-6);
    bool all_right = true;
    const std::vector<weight_type> types = checked_types(gpu.get(), opts, all_right);
    if (!opts.check_only && !types.empty()) {
        const bandwidth memory = measure_bandwidth(facts);
        printf("memory: a kernel that only reads gets %.0f GB/s, a copy %.0f GB/s (reads plus writes)\n"
               "us: median time of a product; GB/s: bytes of weight and list over that time; share: GB/s over those of "
               "the reading kernel;\n"
               "per byte/peer: GB/s over those of the fastest type of llama.cpp; speed/peer: products per second over "
               "those of the fastest\n",
            memory.read * 1e-9, memory.copy * 1e-9);
        table out(opts.csv, memory);
        for (const shape & s : opts.shapes_) {
            measure(gpu.get(), facts, types, s, opts, out);
        }
        printf("\nmemory at the end: reading %.0f GB/s\n", measure_bandwidth(select_gpu(opts.device)).read * 1e-9);
    }
    return all_right ? 0 : 1;
}

} // namespace

int main(int argc, char ** argv) {
    for (int i = 1; i < argc; ++i) {
        if (!strcmp(argv[i], "-h") || !strcmp(argv[i], "--help")) {
            fputs(USAGE, stdout);
            return 0;
        }
    }
    try {
        return run(options(argc, argv));
    } catch (const usage_error & e) {
        fprintf(stderr, "bof4-bench-cuda: %s\n%s", e.what(), USAGE);
        return 2;
    } catch (const std::exception & e) {
        fprintf(stderr, "bof4-bench-cuda: %s\n", e.what());
        return 1;
    }
}
