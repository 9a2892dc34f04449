// A choice between alternatives that have the same result: operations try them in turns while a model runs, and the one
// with the smallest median time is used from then on.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <vector>

// N alternatives, of which the first is the default. Not thread safe.
template <size_t N>
class bof4_choice {
  public:
    // SAMPLES of each alternative decide; another than the default has to be faster by GAIN.
    static constexpr size_t SAMPLES = 24;
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

    static double median(std::vector<double> values) {
        std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
        return values[values.size() / 2];
    }

    void choose() {
        std::array<double, N> times;
        std::transform(samples.begin(), samples.end(), times.begin(), median);
        const auto least = std::min_element(times.begin(), times.end());
        best = *least < (1.0 - GAIN) * times[0] ? (int) (least - times.begin()) : 0;
    }
};
