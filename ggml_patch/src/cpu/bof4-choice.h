// A choice between alternatives that have the same result: operations try them in turns while a model runs, and the one
// with the smallest mean time (without the largest) is used from then on.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <numeric>
#include <vector>

// N alternatives, of which the first is the default. SAMPLES of each decide. Not thread safe.
template <size_t N, size_t SAMPLES>
class bof4_choice {
  public:
    // Another than the default has to be faster by this.
    static constexpr double GAIN = 0.02;

    // The alternative to try, or -1: it is chosen. Operations repeat in each layer, and every alternative is to meet
    // all of them: rounds begin with another one each time, after 1, 2, 4, ... turns as well.
    int next() {
        const size_t round = turn / N;
        size_t rotation = round;
        for (size_t rest = round; rest != 0; rest &= rest - 1) {
            ++rotation;
        }
        return chosen() >= 0 ? -1 : (int) ((turn++ + rotation) % N);
    }

    // A time of it, per unit of work. true: this one decided.
    bool add(int alternative, double time) {
        if (chosen() >= 0) {
            return false; // another thread's did meanwhile
        }
        samples[alternative].push_back(time);
        if (std::all_of(samples.begin(), samples.end(), [](const auto & s) { return s.size() >= SAMPLES; })) {
            choose();
        }
        return chosen() >= 0;
    }

    // -1: not yet.
    int chosen() const { return best; }

  private:
    std::array<std::vector<double>, N> samples;
    size_t turn = 0;
    int best = -1;

    // The mean of the smaller three quarters. Calls are of several kinds, such as weights from memory and from L2: a
    // median lies between two kinds, where it depends on which kind an alternative met once more. The largest times are
    // interruptions.
    static double typical(std::vector<double> values) {
        const size_t n = std::max<size_t>(1, values.size() * 3 / 4);
        std::nth_element(values.begin(), values.begin() + n - 1, values.end());
        return std::accumulate(values.begin(), values.begin() + n, 0.0) / n;
    }

    void choose() {
        std::array<double, N> times;
        std::transform(samples.begin(), samples.end(), times.begin(), typical);
        const auto least = std::min_element(times.begin(), times.end());
        best = *least < (1.0 - GAIN) * times[0] ? (int) (least - times.begin()) : 0;
    }
};
