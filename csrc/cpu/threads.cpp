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
constexpr uint32_t kMaskPurpose = 2, kSignsPurpose = 4, kAnchorSignsPurpose = 5;
// Elements that share the high word of their counter: 2^32 blocks of four.
constexpr uint64_t kRange = uint64_t{1} << 34;

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

/// One thread's schedules of some keys, for the counter range at hand.
class Schedules {
public:
    explicit Schedules(const std::vector<Key>& keys) : keys_(keys), schedules_(keys.size()) {}

    const Schedule* at(uint32_t counter_high) {
        if (counter_high != high_)
            for (size_t k = 0; k < keys_.size(); ++k) schedules_[k] = schedule(keys_[k], counter_high);
        high_ = counter_high;
        return schedules_.data();
    }

private:
    const std::vector<Key>& keys_;
    std::vector<Schedule> schedules_;
    int64_t high_ = -1;  // no schedules yet
};

/// The blocks of some keys for elements first & ~127..first+count-1 of a piece, each of which serves so many of them. -> nullptr: of no key.
template <size_t elements>
const uint16_t* drawn(const Isa& isa, const Schedule* schedules, uint64_t first, uint64_t count, std::vector<uint16_t>& to) {
    const uint64_t begin = (first & ~uint64_t{127}) / elements, end = (first + count + elements - 1) / elements;
    for (size_t i = 0; i < to.size(); i += halves(elements)) isa.draw(&to[i], static_cast<uint32_t>(begin), end - begin, *schedules++);
    return to.empty() ? nullptr : to.data();
}

/// values[n][groups] as [groups][n].
std::vector<float> by_group(const float* values, size_t n, size_t groups) {
    std::vector<float> turned(n * groups);
    for (size_t i = 0; i < turned.size(); ++i) turned[i] = values[i % n * groups + i / n];
    return turned;
}

/// The keys of the masks of terms: another purpose, the same probe (docs/noise_spec.md).
std::vector<Key> mask_keys(std::vector<Key> keys) {
    for (Key& key : keys) key.stream = kMaskPurpose << 24 | (key.stream & 0xFFFFFF);
    return keys;
}

/// The noise of a pass is all of one kind.
bool are_signs(const std::vector<Key>& keys) {
    const uint32_t purpose = keys.empty() ? 0 : keys[0].stream >> 24;
    return purpose == kSignsPurpose || purpose == kAnchorSignsPurpose;
}

/// body(kernels of the storage type, the elements at an address)
template <class Body>
void with_storage(const Isa& isa, Storage storage, int64_t address, const Body& body) {
    switch (storage) {
        case Storage::float32: return body(isa.float32, reinterpret_cast<float*>(address));
        case Storage::bfloat16: return body(isa.bfloat16, reinterpret_cast<bfloat16*>(address));
        case Storage::float16: return body(isa.float16, reinterpret_cast<float16*>(address));
    }
}
int64_t size_of(Storage storage) { return storage == Storage::float32 ? 4 : 2; }

/// Where a run is: its row, its first element there, the row's coefficient group, and where it is written.
struct Place {
    size_t row;
    int64_t begin;
    size_t group;
    void* out;
};

/// Parts the elements of all rows among threads: on_run(kernels of the storage type, theta, the run that begins there, its place) for runs
/// of one line that share the high word of their counter, first >> 34; and of one piece, where something is drawn ahead. All memory is taken
/// here, before anything moves: an exception may not leave a thread.
template <class OnRun>
void in_parallel(const Isa& isa, const Pass& pass, int max_threads, const OnRun& on_run) {
    const Row* const rows = pass.rows;
    const size_t n_rows = pass.n_rows;
    std::vector<int64_t> starts(n_rows + 1, 0);  // in grains
    for (size_t i = 0; i < n_rows; ++i) starts[i + 1] = starts[i] + (rows[i].numel + kGrain - 1) / kGrain;
    const int64_t grains = starts.back(), keys = static_cast<int64_t>(std::max<size_t>(pass.keys.size(), 1));
    const int most = alone ? 1 : std::max(max_threads, 1);
    const int threads = static_cast<int>(std::clamp<int64_t>(grains * kGrain * keys / kWorthAThread, 1, most));
    // Cores are not equally fast. With few keys, though, memory is what counts, and a thread keeps to its own.
    const int64_t parts = threads == 1 ? 1 : threads * std::clamp<int64_t>(keys / kKeysAPart, 1, kMostParts);
    struct Worker {
        Schedules keys, masks, rounding, state_rounding;
        std::vector<uint16_t> signs, random, state_random;
    };
    const std::vector<Key> masks = mask_keys(pass.keys);
    const bool signs = are_signs(pass.keys), at_random = !pass.rounding.empty() || !pass.state_rounding.empty();
    std::vector<Worker> workers(threads, {Schedules(pass.keys), Schedules(masks), Schedules(pass.rounding), Schedules(pass.state_rounding),
                                          std::vector<uint16_t>(signs ? pass.keys.size() * kSigns : 0),
                                          std::vector<uint16_t>(pass.rounding.size() * kRandom),
                                          std::vector<uint16_t>(pass.state_rounding.size() * kRandom)});

    std::atomic<int64_t> taken{0};
    const auto take_part = [&](int thread, int team) noexcept {
        const DefaultFloats floats;
        Worker own = std::move(workers[thread]);
        const auto in_row = [&](size_t i, int64_t at, int64_t end) {
            const Row& row = rows[i];
            const float* const decay = pass.decay ? pass.decay + row.group : nullptr;
            while (at < end) {
                const int64_t line = at / row.columns, column = at % row.columns;
                const uint64_t first = static_cast<uint64_t>(row.first + line * row.step + column);
                const uint64_t range = signs || at_random ? kPiece : kRange;
                const uint64_t count = std::min<uint64_t>(std::min(end - at, row.columns - column), range - first % range);
                const uint32_t high = static_cast<uint32_t>(first / kRange), keep_threshold = static_cast<uint32_t>(row.keep_threshold);
                const bool masked = keep_threshold != kKeepAll;
                const Mask mask{masked ? own.masks.at(high) : nullptr, keep_threshold};
                // Blocks of signs serve 128 elements, those that round eight, not four.
                const Schedule* const schedules = own.keys.at(signs ? high >> 5 : high);
                const Run run{first, count, schedules, pass.keys.size(), masked ? &mask : nullptr, decay,
                              drawn<128>(isa, schedules, first, count, own.signs),
                              drawn<8>(isa, own.rounding.at(high >> 1), first, count, own.random),
                              drawn<8>(isa, own.state_rounding.at(high >> 1), first, count, own.state_random)};
                const int64_t out = row.out + (line * row.out_pitch + column) * size_of(pass.out_storage);
                const Place place{i, at, static_cast<size_t>(row.group), reinterpret_cast<void*>(out)};
                with_storage(isa, pass.storage, row.address,
                             [&](const auto& kernels, auto* theta) { on_run(kernels, theta + line * row.pitch + column, run, place); });
                at += count;
            }
        };
        // A smaller team than asked for (OMP_DYNAMIC, a limit, nesting) must still do all of the work.
        for (int64_t part = thread; part < parts; part = team + taken++) {
            const int64_t begin = grains * part / parts, end = grains * (part + 1) / parts;
            size_t i = std::upper_bound(starts.begin(), starts.end(), begin) - starts.begin() - 1;
            for (; i < n_rows && starts[i] < end; ++i)
                in_row(i, std::max<int64_t>(begin - starts[i], 0) * kGrain, std::min((end - starts[i]) * kGrain, rows[i].numel));
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
    if (has_avx512 && wanted("avx512")) return &avx512;
    if (has_avx2 && wanted("avx2")) return &avx2;
#endif
    return wanted("scalar") ? &scalar : nullptr;
}

void add_noise(const Isa& isa, const Pass& pass, const float* coefficients, int max_threads) {
    const size_t n_keys = pass.keys.size();
    const std::vector<float> turned = by_group(coefficients, n_keys, pass.groups);
    in_parallel(isa, pass, max_threads, [&](const auto& kernels, auto* theta, const Run& run, const Place& place) {
        const auto& kinds = kernels.add_noise[static_cast<int>(pass.out_storage)];
        kinds[run.signs != nullptr][run.mask != nullptr](theta, place.out, run, turned.data() + place.group * n_keys);
    });
}

void replay(const Isa& isa, const Pass& pass, const uint8_t* instructions, size_t n_instructions, const float* values, int max_threads) {
    std::vector<float> turned = by_group(values, n_instructions, pass.groups);
    for (float& value : turned)
        if (value != value) value = std::numeric_limits<float>::quiet_NaN();
    in_parallel(isa, pass, max_threads, [&](const auto& kernels, auto* theta, const Run& run, const Place& place) {
        const auto& kinds = kernels.replay[run.signs != nullptr];
        kinds[run.mask != nullptr](theta, run, {instructions, n_instructions, turned.data() + place.group * n_instructions});
    });
}

void update(const Isa& isa, const Pass& pass, const Rule& rule, int max_threads) {
    const bool in_bfloat16 = !pass.state_rounding.empty();
    const size_t n_keys = pass.keys.size(), state_size = in_bfloat16 ? sizeof(bfloat16) : sizeof(float);
    const std::vector<float> in_theta = by_group(rule.in_theta, n_keys, pass.groups), in_g = by_group(rule.in_g, rule.of_key * n_keys, pass.groups),
                             numbers = by_group(rule.numbers, rule.n_numbers, pass.groups);
    in_parallel(isa, pass, max_threads, [&](const auto& kernels, auto* theta, const Run& run, const Place& place) {
        void* state[kSlots];
        for (size_t s = 0; s < rule.n_slots; ++s)
            state[s] = reinterpret_cast<char*>(rule.state[place.row * rule.n_slots + s]) + place.begin * state_size;
        const Step step{in_theta.data() + place.group * n_keys, in_g.data() + place.group * rule.of_key * n_keys,
                        numbers.data() + place.group * rule.n_numbers};
        kernels.update[rule.code][in_bfloat16](theta, state, run, step);
    });
}

}  // namespace zokern
