// The products of bof4-bench-cuda, computed by the CPU backend: graphs of each type, dense and of mixtures, can be built
// and computed, and a mixture's product reads as many matrices as the bench counts. Exit code 1 where something is wrong.
#include "bench/bench-products.h"
#include "ggml-cpu.h"

#include <cstdio>
#include <set>

int main() {
    const std::vector<shape> small = {
        { "", "dense", 16, 256 },
        { "", "one input", 16, 256, 6, 2, false },
        { "", "an input for each expert", 16, 256, 6, 2, true },
    };
    ggml_backend_ptr cpu(ggml_backend_cpu_init());
    bool all_right = true;
    for (const shape & s : small) {
        for (int64_t tokens : { 1, 2, 5 }) {
            const std::vector<int32_t> first = ids_of_product(s, tokens, 0);
            const std::set<int32_t> read(first.begin(), first.end());
            if ((int64_t) read.size() != s.matrices_read(tokens)) {
                printf("%s, %d tokens: %d matrices are read, %d counted\n", s.matrices.c_str(), (int) tokens,
                    (int) read.size(), (int) s.matrices_read(tokens));
                all_right = false;
            }
        }
        for (const weight_type & type : weight_types()) {
            const encoded data(type, s, s.experts * s.rows, 1);
            const rotating_weight weight(cpu.get(), type, s, data, 2);
            for (int64_t tokens : { 1, 5 }) {
                product_graph graph(cpu.get(), weight, s, tokens, 4);
                graph.enqueue();
                const difference d = compare(cpu.get(), cpu.get(), type, s, data, tokens);
                if (!graph.supported() || !(d.nmse == 0)) {
                    printf("%s, %s, %d tokens: supported %d, error %g\n", type.name.c_str(), s.matrices.c_str(),
                        (int) tokens, (int) graph.supported(), d.nmse);
                    all_right = false;
                }
            }
        }
    }
    return all_right ? 0 : 1;
}
