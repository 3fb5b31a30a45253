#include "threads.hpp"

#include <algorithm>
#include <cstring>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace zokern {
namespace {

// Below this many elements a thread, waking it costs about as much as it saves.
constexpr int64_t kWorthAThread = 1 << 15;
// Threads part the work at multiples of this: whole cache lines and whole blocks of noise.
constexpr int64_t kGrain = 1 << 10;

/// One thread's terms for the row and counter range at hand.
class Terms {
public:
    Terms(const std::vector<Key>& keys, const float* coefficients, size_t groups)
        : keys_(keys), coefficients_(coefficients), groups_(groups), terms_(keys.size()) {}

    const Term* at(uint32_t counter_high, size_t group) {
        if (!made_ || counter_high != high_)
            for (size_t k = 0; k < keys_.size(); ++k) terms_[k].schedule = schedule(keys_[k], counter_high);
        if (!made_ || group != group_)
            for (size_t k = 0; k < keys_.size(); ++k) terms_[k].coefficient = coefficients_[k * groups_ + group];
        made_ = true, high_ = counter_high, group_ = group;
        return terms_.data();
    }

private:
    const std::vector<Key>& keys_;
    const float* coefficients_;
    size_t groups_;
    std::vector<Term> terms_;
    bool made_ = false;
    uint32_t high_ = 0;
    size_t group_ = 0;
};

template <class T>
void run(AddNoise<T> kernel, const Row& row, int64_t begin, int64_t end, Terms& terms, size_t n_terms, const float* decay) {
    T* theta = reinterpret_cast<T*>(row.address);
    while (begin < end) {
        // The low word of the counter wraps every 2^34 elements; a run must not cross that.
        const uint64_t first = static_cast<uint64_t>(row.first + begin);
        const uint64_t to_wrap = (uint64_t{1} << 34) - (first & ((uint64_t{1} << 34) - 1));
        const int64_t count = static_cast<int64_t>(std::min<uint64_t>(end - begin, to_wrap));
        kernel(theta + begin, first, count, terms.at(static_cast<uint32_t>(first >> 34), row.group), n_terms, decay);
        begin += count;
    }
}

}  // namespace

const Isa* find_isa(const char* name) {
    const auto wanted = [&](const char* isa) { return !*name || !std::strcmp(name, isa); };
#if defined(__x86_64__)
    __builtin_cpu_init();
    // Every processor with AVX2 has F16C, which older compilers cannot ask for.
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (has_avx512 && wanted("avx512")) return &avx512();
    if (has_avx2 && wanted("avx2")) return &avx2();
#endif
    return wanted("scalar") ? &scalar() : nullptr;
}

void add_noise(const Isa& isa, Storage storage, const Row* rows, size_t n_rows, const std::vector<Key>& keys, const float* coefficients,
               size_t groups, const float* decay, int max_threads) {
    std::vector<int64_t> starts(n_rows + 1, 0);  // in grains
    for (size_t i = 0; i < n_rows; ++i) starts[i + 1] = starts[i] + (rows[i].count + kGrain - 1) / kGrain;
    const int64_t grains = starts.back();
    const int64_t work = grains * kGrain * static_cast<int64_t>(std::max<size_t>(keys.size(), 1));
    const int threads = static_cast<int>(std::clamp<int64_t>(work / kWorthAThread, 1, std::max(max_threads, 1)));

    const auto part = [&](int64_t thread) {
        Terms terms(keys, coefficients, groups);
        const int64_t begin = grains * thread / threads, end = grains * (thread + 1) / threads;
        size_t i = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
        for (; i < n_rows && starts[i] < end; ++i) {
            const Row& row = rows[i];
            const int64_t from = std::max<int64_t>(begin - starts[i], 0) * kGrain;
            const int64_t to = std::min((end - starts[i]) * kGrain, row.count);
            const float* row_decay = decay ? decay + row.group : nullptr;
            switch (storage) {
                case Storage::float32: run(isa.float32, row, from, to, terms, keys.size(), row_decay); break;
                case Storage::bfloat16: run(isa.bfloat16, row, from, to, terms, keys.size(), row_decay); break;
                case Storage::float16: run(isa.float16, row, from, to, terms, keys.size(), row_decay); break;
            }
        }
    };
#ifdef _OPENMP
    if (threads > 1) {
        // A smaller team than asked for (OMP_DYNAMIC, a limit, nesting) must still do all of the work.
#pragma omp parallel num_threads(threads)
        for (int64_t thread = omp_get_thread_num(); thread < threads; thread += omp_get_num_threads()) part(thread);
        return;
    }
#endif
    for (int64_t thread = 0; thread < threads; ++thread) part(thread);
}

}  // namespace zokern
