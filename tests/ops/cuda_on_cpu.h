// Runs a block of CUDA threads on the CPU, one after the other: each is a fiber that goes on until the others of its
// warp or block have to catch up. Defines what nnunet_godc/ops/deform_conv_gradient.cu takes from CUDA; GCC on Linux.
#include <csetjmp>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

#define CPU
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads, blocks)

typedef unsigned int u32;
typedef unsigned short u16;
struct Index { unsigned x, y, z; };
struct float2 { float x, y; };
struct uint2 { u32 x, y; };
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
struct uint4 { u32 x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }

static Index threadIdx, blockIdx;
static unsigned char* shared;

struct Fiber {
    ucontext_t first;
    jmp_buf here;
    Index thread;
    void (*body)();
    bool started, done, at_barrier;
    std::vector<char> stack;
};
struct Warp {
    int arrived;
    unsigned generation;
    void* of[32];  // what each thread brought
};
static std::vector<Fiber> fibers;
static std::vector<Warp> warps;
static Fiber* current;
static jmp_buf scheduler;
static unsigned barriers;

static void hand_over() {
    if (_setjmp(current->here) == 0) _longjmp(scheduler, 1);
}
static void enter() {
    current->body();
    current->done = true;
    _longjmp(scheduler, 1);
}
static void resume(Fiber& fiber) {
    current = &fiber;
    threadIdx = fiber.thread;
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.here, 1);
    fiber.started = true;
    setcontext(&fiber.first);
}

// Warps take turns, a step each, in either order: what needs a barrier shows without it.
static void run_block(void (*body)(), unsigned threads, bool backwards) {
    fibers.resize(threads);
    warps.assign(threads / 32, Warp());
    for (unsigned i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[i];
        fiber.thread = {i, 0, 0};
        fiber.body = body;
        fiber.started = fiber.done = fiber.at_barrier = false;
        fiber.stack.resize(1 << 17);
        getcontext(&fiber.first);
        fiber.first.uc_stack.ss_sp = fiber.stack.data();
        fiber.first.uc_stack.ss_size = fiber.stack.size();
        makecontext(&fiber.first, enter, 0);
    }
    volatile unsigned idle = 0;
    while (true) {
        volatile unsigned running = 0, waiting = 0;
        for (volatile unsigned i = 0; i < threads; i = i + 1) {
            Fiber& fiber = fibers[backwards ? threads - 1 - i : i];
            if (!fiber.done && !fiber.at_barrier) resume(fiber);
            running = running + !fiber.done;
            waiting = waiting + (!fiber.done && fiber.at_barrier);
        }
        if (running == 0) return;
        idle = idle + 1;
        if (waiting == running) {
            idle = 0;
            ++barriers;
            for (Fiber& fiber : fibers) fiber.at_barrier = false;
        } else if (idle > 10000000) {
            fprintf(stderr, "threads of a warp wait for each other\n");
            abort();
        }
    }
}

inline void __syncthreads() {
    unsigned before = barriers;
    current->at_barrier = true;
    while (barriers == before) hand_over();
}

// What the threads of a warp do together: the last to arrive does it for all.
template <class Part, class Work>
void together(Part& part, Work work) {
    unsigned lane = threadIdx.x % 32;
    Warp& warp = warps[threadIdx.x / 32];
    warp.of[lane] = &part;
    if (++warp.arrived == 32) {
        Part* parts[32];
        for (int i = 0; i < 32; ++i) parts[i] = (Part*)warp.of[i];
        work(parts);
        warp.arrived = 0;
        ++warp.generation;
    } else {
        unsigned before = warp.generation;
        while (warp.generation == before) hand_over();
    }
}
inline void __syncwarp() {
    int none = 0;
    together(none, [](int**) {});
}
template <class Value>
Value shuffle(Value value, int from) {
    struct Part { Value given, taken; int from; } part = {value, value, from};
    together(part, [](Part** parts) {
        for (int lane = 0; lane < 32; ++lane)
            if (parts[lane]->from >= 0) parts[lane]->taken = parts[parts[lane]->from]->given;
    });
    return part.taken;
}
template <class Value> Value __shfl_sync(u32, Value value, int from) { return shuffle(value, from); }
template <class Value> Value __shfl_xor_sync(u32, Value value, int mask) {
    return shuffle(value, (int)(threadIdx.x % 32) ^ mask);
}
template <class Value> Value __shfl_up_sync(u32, Value value, int by) {
    return shuffle(value, (int)(threadIdx.x % 32) - by);
}

template <class Value> Value atomicAdd(Value* to, Value value) {
    Value before = *to;
    *to += value;
    return before;
}
inline int atomicMax(int* to, int value) {
    int before = *to;
    if (value > before) *to = value;
    return before;
}
inline uint2 load_if(bool exists, const u16* from) {
    uint2 result = {0, 0};
    if (exists) memcpy(&result, from, 8);
    return result;
}
inline void add_four(float* to, float a, float b, float c, float d) {
    if ((size_t)to % 16) abort();
    to[0] += a, to[1] += b, to[2] += c, to[3] += d;
}

inline float __uint_as_float(u32 bits) { float value; memcpy(&value, &bits, 4); return value; }
inline float __int_as_float(int bits) { float value; memcpy(&value, &bits, 4); return value; }
inline u32 __float_as_uint(float value) { u32 bits; memcpy(&bits, &value, 4); return bits; }
inline int __float_as_int(float value) { int bits; memcpy(&bits, &value, 4); return bits; }
inline float __saturatef(float value) { return value > 0.0f ? (value < 1.0f ? value : 1.0f) : 0.0f; }

inline float from_half(u16 bits) {
    _Float16 value;
    memcpy(&value, &bits, 2);
    return (float)value;
}
inline u16 bits_of(float value) {
    u16 bits;
#if HALF
    _Float16 half = (_Float16)value;
    memcpy(&bits, &half, 2);
#else
    u32 word = __float_as_int(value);
    if (value != value) return 0x7fff;
    bits = (word + 0x7fff + (word >> 16 & 1)) >> 16;
#endif
    return bits;
}
inline float from_bits(u16 bits) {
#if HALF
    return from_half(bits);
#else
    return __uint_as_float((u32)bits << 16);
#endif
}
inline u32 pair(float first, float second) { return bits_of(first) | (u32)bits_of(second) << 16; }

// Fragments as PTX documents them: of A rows g, g + 8 and columns 2t, 2t + 8; of B rows 2t, 2t + 8 and column g.
inline void product(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1, const float (&before)[4]) {
    struct Part { float* sums; const u32* a; u32 b[2]; } part = {sums, a, {b0, b1}};
    for (int i = 0; i < 4; ++i) sums[i] = before[i];
    together(part, [](Part** parts) {
        float a[16][16], b[16][8];
        for (int lane = 0; lane < 32; ++lane) {
            int g = lane / 4, t = lane % 4;
            for (int beside = 0; beside < 2; ++beside) {
                for (int i = 0; i < 4; ++i)
                    a[g + 8 * (i % 2)][2 * t + 8 * (i / 2) + beside] = from_bits(parts[lane]->a[i] >> 16 * beside);
                for (int i = 0; i < 2; ++i) b[2 * t + 8 * i + beside][g] = from_bits(parts[lane]->b[i] >> 16 * beside);
            }
        }
        for (int lane = 0; lane < 32; ++lane)
            for (int i = 0; i < 4; ++i)
                for (int k = 0; k < 16; ++k)
                    parts[lane]->sums[i] += a[lane / 4 + 8 * (i / 2)][k] * b[k][2 * (lane % 4) + i % 2];
    });
}
template <bool TRANSPOSED>
void load_four(u32 (&to)[4], const void* row) {
    struct Part { u32* to; const u16* row; } part = {to, (const u16*)row};
    if ((size_t)row % 16) abort();
    together(part, [](Part** parts) {
        for (int lane = 0; lane < 32; ++lane)
            for (int m = 0; m < 4; ++m) {
                u16 two[2];
                for (int beside = 0; beside < 2; ++beside) {
                    int row = lane / 4, column = 2 * (lane % 4) + beside;
                    two[beside] = TRANSPOSED ? parts[8 * m + column]->row[row] : parts[8 * m + row]->row[column];
                }
                parts[lane]->to[m] = two[0] | (u32)two[1] << 16;
            }
    });
}
inline void load_matrices(u32 (&to)[4], const void* row) { load_four<false>(to, row); }
inline void load_transposed(u32 (&to)[4], const void* row) { load_four<true>(to, row); }

#include KERNEL

static Arguments given;
extern "C" size_t shared_bytes(int outputs) {
    return offsetof(Shared, grad_output) + 2 * VOXELS * (outputs + PADDING);
}
extern "C" int run(const Arguments* arguments, const unsigned* grid, unsigned threads, size_t bytes, int backwards) {
    // what is in shared memory before a block runs is anything; what lies behind it must stay
    const size_t behind = 256;
    std::vector<unsigned char> memory(bytes + behind + 16);
    shared = memory.data() + (16 - (size_t)memory.data() % 16) % 16;
    given = *arguments;
    for (blockIdx.z = 0; blockIdx.z < grid[2]; ++blockIdx.z)
        for (blockIdx.y = 0; blockIdx.y < grid[1]; ++blockIdx.y)
            for (blockIdx.x = 0; blockIdx.x < grid[0]; ++blockIdx.x) {
                memset(shared, 0xff, bytes + behind);
                run_block([] { gradient_by_samples(given); }, threads, backwards);
                for (size_t i = 0; i < behind; ++i)
                    if (shared[bytes + i] != 0xff) return 1;
            }
    return 0;
}
