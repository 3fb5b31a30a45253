#include "threads.hpp"

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <cstring>
#include <limits>
#include <utility>

#ifdef _OPENMP
#include <omp.h>
#include <pthread.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace zokern {
namespace {

// Below this many elements a thread, waking it costs about as much as it saves.
constexpr int64_t kWorthAThread = 1 << 15;
// Threads part the work at multiples of this: whole cache lines and whole blocks of noise.
constexpr int64_t kGrain = 1 << 10;
// Threads take part after part of a run of passes, so many for each thread.
constexpr int64_t kKeysAPart = 4, kMostParts = 16;
constexpr uint32_t kMaskPurpose = 2;

#ifdef _OPENMP
// A forked child has none of the threads that OpenMP counts on, and would wait for them for ever: it works alone.
bool alone = false;
[[maybe_unused]] const int watched = pthread_atfork(nullptr, nullptr, [] { alone = true; });
#else
constexpr bool alone = true;
#endif

// What says how floats are rounded and whether denormals count. (The portable way takes 0.2 us a pass.)
#if defined(__x86_64__)
using Control = unsigned;
void get(Control& c) { c = _mm_getcsr(); }
void set(const Control& c) { _mm_setcsr(c); }
void set_default() { _mm_setcsr(0x1F80); }
#else
using Control = std::fenv_t;
void get(Control& c) { std::fegetenv(&c); }
void set(const Control& c) { std::fesetenv(&c); }
void set_default() { std::fesetenv(FE_DFL_ENV); }
#endif

/// While it lives, this thread's floats are the specification's: to nearest even, with denormals. What torch.set_flush_denormal and
/// fesetround set is one thread's own, and a thread begins with what its maker had then.
class DefaultFloats {
public:
    DefaultFloats() { get(before_), set_default(); }
    ~DefaultFloats() { set(before_); }
    DefaultFloats(const DefaultFloats&) = delete;

private:
    Control before_;
};

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

/// One thread's schedules of other keys.
class Schedules {
public:
    explicit Schedules(const std::vector<Key>& keys) : keys_(keys), schedules_(keys.size()) {}

    const Schedule* at(uint32_t counter_high) {
        if (!made_ || counter_high != high_)
            for (size_t k = 0; k < keys_.size(); ++k) schedules_[k] = schedule(keys_[k], counter_high);
        made_ = true, high_ = counter_high;
        return schedules_.data();
    }

private:
    const std::vector<Key>& keys_;
    std::vector<Schedule> schedules_;
    bool made_ = false;
    uint32_t high_ = 0;
};

/// The keys of the masks of terms: another purpose, the same probe (docs/noise_spec.md).
std::vector<Key> mask_keys(std::vector<Key> keys) {
    for (Key& key : keys) key.stream = kMaskPurpose << 24 | (key.stream & 0xFFFFFF);
    return keys;
}

/// body(kernels of the row's storage type, its elements)
template <class Body>
void with_storage(const Isa& isa, Storage storage, const Row& row, const Body& body) {
    switch (storage) {
        case Storage::float32: return body(isa.float32, reinterpret_cast<float*>(row.address));
        case Storage::bfloat16: return body(isa.bfloat16, reinterpret_cast<bfloat16*>(row.address));
        case Storage::float16: return body(isa.float16, reinterpret_cast<float16*>(row.address));
    }
}

/// run(begin, first, count) for parts of elements begin..end-1 of a row that the high word of the counter, first >> 34, is the same for.
template <class Run>
void in_runs(const Row& row, int64_t begin, int64_t end, const Run& run) {
    while (begin < end) {
        const uint64_t first = static_cast<uint64_t>(row.first + begin);
        const uint64_t to_wrap = (uint64_t{1} << 34) - (first & ((uint64_t{1} << 34) - 1));
        const int64_t count = static_cast<int64_t>(std::min<uint64_t>(end - begin, to_wrap));
        run(begin, first, count);
        begin += count;
    }
}

/// Parts the elements of all rows among threads. work() makes what one thread does its parts with: (index of a row, begin, end). All
/// memory is taken here, before anything moves: an exception may not leave a thread.
template <class Work>
void in_parallel(const Row* rows, size_t n_rows, size_t n_keys, int max_threads, const Work& work) {
    std::vector<int64_t> starts(n_rows + 1, 0);  // in grains
    for (size_t i = 0; i < n_rows; ++i) starts[i + 1] = starts[i] + (rows[i].count + kGrain - 1) / kGrain;
    const int64_t grains = starts.back(), keys = static_cast<int64_t>(std::max<size_t>(n_keys, 1));
    const int most = alone ? 1 : std::max(max_threads, 1);
    const int threads = static_cast<int>(std::clamp<int64_t>(grains * kGrain * keys / kWorthAThread, 1, most));
    // Cores are not equally fast. With few keys, though, memory is what counts, and a thread keeps to its own.
    const int64_t parts = threads == 1 ? 1 : threads * std::clamp<int64_t>(keys / kKeysAPart, 1, kMostParts);
    std::vector<decltype(work())> workers;
    workers.reserve(threads);
    while (static_cast<int>(workers.size()) < threads) workers.push_back(work());

    std::atomic<int64_t> taken{0};
    const auto take_part = [&](int thread, int team) noexcept {
        const DefaultFloats floats;
        auto one = std::move(workers[thread]);
        // A smaller team than asked for (OMP_DYNAMIC, a limit, nesting) must still do all of the work.
        for (int64_t part = thread; part < parts; part = team + taken++) {
            const int64_t begin = grains * part / parts, end = grains * (part + 1) / parts;
            size_t i = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
            for (; i < n_rows && starts[i] < end; ++i)
                one(i, std::max<int64_t>(begin - starts[i], 0) * kGrain, std::min((end - starts[i]) * kGrain, rows[i].count));
        }
    };
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel num_threads(threads)
        take_part(omp_get_thread_num(), omp_get_num_threads());
        return;
    }
#endif
    take_part(0, 1);
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

void add_noise(const Isa& isa, const Pass& pass, const float* coefficients, int max_threads) {
    const std::vector<Key> masked = mask_keys(pass.keys);
    in_parallel(pass.rows, pass.n_rows, pass.keys.size(), max_threads, [&] {
        return [&, terms = Terms(pass.keys, coefficients, pass.groups),
                masks = Schedules(masked)](size_t i, int64_t from, int64_t to) mutable {
            const Row& row = pass.rows[i];
            const bool dense = row.keep_threshold == kKeepAll;
            const float* decay = pass.decay ? pass.decay + row.group : nullptr;
            with_storage(isa, pass.storage, row, [&](const auto& kernels, auto* theta) {
                in_runs(row, from, to, [&](int64_t begin, uint64_t first, int64_t count) {
                    const uint32_t high = static_cast<uint32_t>(first >> 34);
                    const Mask mask{dense ? nullptr : masks.at(high), static_cast<uint32_t>(row.keep_threshold)};
                    kernels.add_noise[!dense](theta + begin, first, count, terms.at(high, row.group), pass.keys.size(), decay, &mask);
                });
            });
        };
    });
}

void replay(const Isa& isa, const Pass& pass, const uint8_t* instructions, size_t n_instructions, const float* values, int max_threads) {
    const std::vector<Key> masked = mask_keys(pass.keys);
    std::vector<float> quiet(values, values + n_instructions * pass.groups);
    for (float& value : quiet)
        if (value != value) value = std::numeric_limits<float>::quiet_NaN();
    in_parallel(pass.rows, pass.n_rows, pass.keys.size(), max_threads, [&] {
        return [&, schedules = Schedules(pass.keys), masks = Schedules(masked)](size_t i, int64_t from, int64_t to) mutable {
            const Row& row = pass.rows[i];
            const bool dense = row.keep_threshold == kKeepAll;
            with_storage(isa, pass.storage, row, [&](const auto& kernels, auto* theta) {
                in_runs(row, from, to, [&](int64_t begin, uint64_t first, int64_t count) {
                    const uint32_t high = static_cast<uint32_t>(first >> 34);
                    const Mask mask{dense ? nullptr : masks.at(high), static_cast<uint32_t>(row.keep_threshold)};
                    const Passes passes{instructions, n_instructions, quiet.data() + row.group, pass.groups, schedules.at(high), &mask};
                    kernels.replay[!dense](theta + begin, first, count, passes);
                });
            });
        };
    });
}

void update(const Isa& isa, const Pass& pass, const Rule& rule, int max_threads) {
    const std::vector<Key> masked = mask_keys(pass.keys);
    const size_t state_size = rule.at_random ? sizeof(bfloat16) : sizeof(float);
    in_parallel(pass.rows, pass.n_rows, pass.keys.size(), max_threads, [&] {
        return [&, terms = Terms(pass.keys, rule.in_theta, pass.groups), masks = Schedules(masked), rounding = Schedules(rule.rounding),
                in_g = std::vector<float>(pass.keys.size())](size_t i, int64_t from, int64_t to) mutable {
            const Row& row = pass.rows[i];
            for (size_t k = 0; k < in_g.size(); ++k) in_g[k] = rule.in_g[k * pass.groups + row.group];
            float numbers[kNumbers];
            for (size_t n = 0; n < rule.n_numbers; ++n) numbers[n] = rule.numbers[n * pass.groups + row.group];
            Step step{nullptr, in_g.data(), in_g.size(), pass.decay ? pass.decay + row.group : nullptr, nullptr, numbers, nullptr};
            with_storage(isa, pass.storage, row, [&](const auto& kernels, auto* theta) {
                in_runs(row, from, to, [&](int64_t begin, uint64_t first, int64_t count) {
                    const uint32_t high = static_cast<uint32_t>(first >> 34);
                    const Mask mask{row.keep_threshold == kKeepAll ? nullptr : masks.at(high), static_cast<uint32_t>(row.keep_threshold)};
                    step.terms = terms.at(high, row.group);
                    step.mask = mask.schedules ? &mask : nullptr;
                    step.rounding = rounding.at(static_cast<uint32_t>(first >> 35));  // its blocks serve eight elements, not four
                    void* state[kSlots];
                    for (size_t s = 0; s < rule.n_slots; ++s)
                        state[s] = reinterpret_cast<char*>(rule.state[i * rule.n_slots + s]) + begin * state_size;
                    kernels.update[rule.code][rule.at_random](theta + begin, state, first, count, step);
                });
            });
        };
    });
}

}  // namespace zokern
