// The gradient by samples of a deformable convolution, for a tile of output voxels; docs/kernels.md tells why it is so.
//
// From dS_k = W_k^T dy of every tap k, the gradients by input and offset. Samples are sorted by the row of grid cells
// that they lie in, (z, y), and then both gradients are products of matrices, which the tensor cores make: the input's
// of interpolation weights (16 voxels of a row, samples) with dS (samples, channels); the offset's from the products of
// voxels' features (16 voxels of a row, channels) with dS (channels, samples). A row of the input's gradient is added
// to memory once. Samples beyond the tile's window of cells are added one by one.
//
// Compiled for: HALF (float16, else bfloat16), WIDE_OFFSETS (float32, else as the input), KERNEL_Z, _Y, _X, AXES (2 or
// 3 displaced), TILE_Z, _Y, _X (64 voxels), TAPS_AT_ONCE, WARPS, BLOCKS (per multiprocessor), WINDOW_Z, _Y (cells),
// MARGIN_Z, _Y, _X (cells before the first tap's). It needs `shared_bytes` of ops/_cuda.py.
//
// In a fragment of a matrix, thread `lane` of a warp has row g = lane / 4 and columns 2t, 2t + 1 with t = lane % 4.

typedef unsigned int u32;
typedef unsigned short u16;
typedef long long i64;

struct Arguments {
    const u16* table;        // (batch, voxels in, groups * channels)
    const void* offset;      // (batch, entries * AXES, voxels out), an entry being a tap of an offset group
    const u16* weight;       // (entries, channels, outputs)
    const u16* grad_output;  // (batch, real_outputs, voxels out)
    float* grad_table;       // as table; is added to
    void* grad_offset;       // as offset, contiguous
    const float* bound;      // of sum_o |W_koc| over all k, c
    i64 offset_batch, offset_channel;  // strides
    int size[3], output_size[3], stride[3], padding[3], dilation[3];
    int groups, channels, outputs, real_outputs;  // channels: whole 16s; outputs: padded to whole 16s
};

#ifndef CPU  // tests define it, and these functions for the CPU
__device__ __forceinline__ u32 pair(float first, float second) {
    u32 result;
#if HALF
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(second), "f"(first));
#else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(second), "f"(first));
#endif
    return result;
}
__device__ __forceinline__ float from_half(u16 bits) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits));
    return result;
}
__device__ __forceinline__ void product(
    float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1, const float (&before)[4]) {
#if HALF
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
#endif
        : "=f"(sums[0]), "=f"(sums[1]), "=f"(sums[2]), "=f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1),
          "f"(before[0]), "f"(before[1]), "f"(before[2]), "f"(before[3]));
}
// Four matrices of 8 rows of 16 bytes, whose addresses the threads name, as fragments.
__device__ __forceinline__ void load_matrices(u32 (&parts)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
                 : "r"((u32)__cvta_generic_to_shared(row)) : "memory");
}
__device__ __forceinline__ void load_transposed(u32 (&parts)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
                 : "r"((u32)__cvta_generic_to_shared(row)) : "memory");
}
__device__ __forceinline__ void add_four(float* to, float a, float b, float c, float d) {
#if __CUDA_ARCH__ >= 900 && (__CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 1))
    asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1,%2,%3,%4};"
                 :: "l"(__cvta_generic_to_global(to)), "f"(a), "f"(b), "f"(c), "f"(d) : "memory");
#else
    atomicAdd(to, a), atomicAdd(to + 1, b), atomicAdd(to + 2, c), atomicAdd(to + 3, d);
#endif
}
// 8 bytes, or 0: without a branch, so that loads do not wait for each other.
__device__ __forceinline__ uint2 load_if(bool exists, const u16* from) {
    uint2 result;
    asm volatile("{ .reg .pred p; setp.ne.u32 p, %3, 0; mov.u32 %0, 0; mov.u32 %1, 0; @p ld.global.v2.u32 {%0,%1}, [%2]; }"
                 : "=&r"(result.x), "=&r"(result.y) : "l"(__cvta_generic_to_global(from)), "r"((u32)exists) : "memory");
    return result;
}
extern __shared__ __align__(16) unsigned char shared[];
#endif

constexpr int TAPS = KERNEL_Z * KERNEL_Y * KERNEL_X;
constexpr int VOXELS = TILE_Z * TILE_Y * TILE_X, SAMPLES = VOXELS * TAPS_AT_ONCE;
constexpr int BLOCK = 16, SLOTS = SAMPLES + BLOCK;  // places for samples, which are taken in whole blocks
constexpr int THREADS = 32 * WARPS;
// Where threads have voxels, each keeps its own and goes from tap to tap.
constexpr int TAPS_A_ROUND = THREADS / VOXELS, PER_THREAD = (TAPS_AT_ONCE + TAPS_A_ROUND - 1) / TAPS_A_ROUND;
constexpr int CHANNELS = 32;               // at a time
constexpr int ROW = 16, CELLS_X = ROW - 1;  // voxels of a row of the window, and the cells between them
constexpr int CELL_ROWS = WINDOW_Z * WINDOW_Y;
constexpr int BEYOND = CELL_ROWS, NOWHERE = CELL_ROWS + 1, BINS = CELL_ROWS + 2;
constexpr int ROWS_Y = WINDOW_Y + 1, VOXEL_ROWS = (WINDOW_Z + (AXES == 3)) * ROWS_Y;
constexpr int STEPS = AXES - 1;               // in which the rows of voxels around a row of cells are taken, two at once
constexpr int PRODUCTS = ROW + 8;             // of a sample with a row of voxels; 8 more keep banks apart
constexpr int HALF_OF_PRODUCTS = 16 * PRODUCTS + 16;
constexpr int PADDING = 8;                    // of outputs in shared memory, for the same reason
constexpr float FAR = 1e6f;                   // from all voxels
static_assert(VOXELS == 64 && WARPS % 2 == 0, "four fragments of 16 voxels, and as many threads for each voxel");

// What lies in shared memory; bytes are counted by `shared_bytes` of ops/_cuda.py as well.
struct Shared {
    unsigned char grad_samples[SLOTS * 2 * CHANNELS];  // sorted; see `chunk_of`
    float position[3][SLOTS];                          // sorted, in the window: (z, y, x)
    float grad_offset[AXES][SLOTS];                    // sorted
    float products[WARPS][2 * HALF_OF_PRODUCTS];
    int count[BINS], start[BINS];
    int next, largest;
    u16 slot_of[SAMPLES];            // from tap * VOXELS + voxel to its place in the order
    alignas(16) u16 grad_output[1];  // (VOXELS, outputs + PADDING)
};

struct Tile {
    int batch, group, first_tap;
    int voxel[3];      // lowest, of the output
    int origin[3];     // of the window, in the input
    const u16* table;  // of the sample and group; with strides, to which 32 bits are enough
    float* grad_table;
    int along_z, along_y, along_x;
};

__device__ __forceinline__ float to_float(u16 bits) {
#if HALF
    return from_half(bits);
#else
    return __uint_as_float((u32)bits << 16);
#endif
}
__device__ __forceinline__ float load_offset(const void* offset, i64 index) {
#if WIDE_OFFSETS
    return ((const float*)offset)[index];
#else
    return to_float(((const u16*)offset)[index]);
#endif
}
__device__ __forceinline__ float tent(float distance) { return __saturatef(1.0f - fabsf(distance)); }
__device__ __forceinline__ bool is_nan(float value) { return value != value; }

// 16 bytes of a sample's dS. Their order in memory is changed from sample to sample, for which `load_matrices` finds 8
// rows in 8 different banks. Chunk 2h + j holds channels 16h + 4t + 2j and the next for t from 0 to 3, so that in a fragment
// a thread has 4 neighbouring channels of each half, and neighbouring threads the next.
__device__ __forceinline__ unsigned char* chunk_of(Shared& s, int slot, int chunk) {
    return s.grad_samples + ((slot * 2 * CHANNELS + ((slot >> 1 & 3) << 4)) ^ (chunk << 4));
}

__device__ __forceinline__ float displaced_position(int regular, float shift, int size) {
    // Beyond a voxel outside the map nothing is read: clamping there keeps the conversion to an integer defined.
    float position = (float)regular + shift;
    position = position < -2.0f ? -2.0f : position;
    return position > size + 1.0f ? size + 1.0f : position;
}

struct Voxel {
    bool exists;
    int at[3];  // in the output
    i64 index;
};

__device__ __forceinline__ Voxel voxel_of(const Arguments& a, const Tile& tile, int inside) {
    Voxel v;
    v.at[0] = tile.voxel[0] + inside / (TILE_Y * TILE_X);
    v.at[1] = tile.voxel[1] + inside / TILE_X % TILE_Y;
    v.at[2] = tile.voxel[2] + inside % TILE_X;
    v.index = ((i64)v.at[0] * a.output_size[1] + v.at[1]) * a.output_size[2] + v.at[2];
    v.exists = v.at[0] < a.output_size[0] && v.at[1] < a.output_size[1] && v.at[2] < a.output_size[2];
    return v;
}

// Where the sample of a voxel's tap lies in the input.
__device__ __forceinline__ void locate(
    const Arguments& a, const Tile& tile, const Voxel& v, int tap, float (&position)[3]) {
    int taps[3] = {tap / (KERNEL_Y * KERNEL_X), tap / KERNEL_X % KERNEL_Y, tap % KERNEL_X};
    i64 first = tile.batch * a.offset_batch + (tile.group * TAPS + tap) * AXES * a.offset_channel + v.index;
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
        int regular = v.at[axis] * a.stride[axis] - a.padding[axis] + taps[axis] * a.dilation[axis];
        position[axis] = regular;
        int displaced = axis - (3 - AXES);
        if (displaced >= 0)
            position[axis] = displaced_position(regular, load_offset(a.offset, first + displaced * a.offset_channel),
                                                a.size[axis]);
    }
}

// Sorts the tile's samples by the row of cells they lie in: those beyond the window and those that do not exist last.
__device__ __forceinline__ void sort_samples(const Arguments& a, const Tile& tile, Shared& s) {
    for (int bin = threadIdx.x; bin < BINS; bin += THREADS) s.count[bin] = 0;
    __syncthreads();
    int bins[PER_THREAD], ranks[PER_THREAD];
    float positions[PER_THREAD][3];
    Voxel v = voxel_of(a, tile, threadIdx.x % VOXELS);
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i) {
        int tap = threadIdx.x / VOXELS + i * TAPS_A_ROUND;
        if (tap < TAPS_AT_ONCE) {
            float* position = positions[i];
            float in_map[3] = {0.0f, 0.0f, 0.0f};
            bool exists = v.exists && tile.first_tap + tap < TAPS;
            if (exists) locate(a, tile, v, tile.first_tap + tap, in_map);
            for (int axis = 0; axis < 3; ++axis) position[axis] = floorf(in_map[axis]) - tile.origin[axis];
            // false for what is no number
            bool inside = exists && position[0] >= 0 && position[0] < WINDOW_Z && position[1] >= 0 &&
                          position[1] < WINDOW_Y && position[2] >= 0 && position[2] < CELLS_X;
            bins[i] = inside ? (int)position[0] * WINDOW_Y + (int)position[1] : exists ? BEYOND : NOWHERE;
            for (int axis = 0; axis < 3; ++axis) position[axis] = in_map[axis] - tile.origin[axis];
            ranks[i] = atomicAdd(&s.count[bins[i]], 1);
        }
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        constexpr int PER_LANE = (BINS + 31) / 32;
        int first = threadIdx.x * PER_LANE, sum = 0;
        for (int bin = first; bin < first + PER_LANE && bin < BINS; ++bin) sum += s.count[bin];
        int until = sum;
        for (int step = 1; step < 32; step *= 2) {
            int before = __shfl_up_sync(0xffffffff, until, step);
            if ((int)threadIdx.x >= step) until += before;
        }
        int start = until - sum;
        for (int bin = first; bin < first + PER_LANE && bin < BINS; ++bin) {
            s.start[bin] = start;
            start += s.count[bin];
        }
        // Blocks of samples in the window hold no others: what fills up the last is far from all voxels.
        __syncwarp();
        int inside = SAMPLES - s.count[BEYOND] - s.count[NOWHERE], slot = inside + threadIdx.x;
        int filled = (inside + BLOCK - 1) / BLOCK * BLOCK;
        if (threadIdx.x == 0) s.start[BEYOND] = filled;
        if (threadIdx.x == 0) s.start[NOWHERE] = filled + s.count[BEYOND];
        if (slot < filled) {
            for (int axis = 0; axis < 3; ++axis) s.position[axis][slot] = FAR;
            for (int part = 0; part < 4; ++part) *(uint4*)chunk_of(s, slot, part) = make_uint4(0, 0, 0, 0);
        }
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < PER_THREAD; ++i) {
        int tap = threadIdx.x / VOXELS + i * TAPS_A_ROUND, sample = tap * VOXELS + threadIdx.x % VOXELS;
        if (tap < TAPS_AT_ONCE) {
            int slot = s.start[bins[i]] + ranks[i];
            s.slot_of[sample] = slot;
            for (int axis = 0; axis < 3; ++axis) s.position[axis][slot] = positions[i][axis];
            for (int axis = 0; axis < AXES; ++axis) s.grad_offset[axis][slot] = 0.0f;
        }
    }
}

// The tile's dy as (voxels, outputs), 0 beyond the map; the bits of its largest magnitude.
__device__ __forceinline__ void load_grad_output(const Arguments& a, const Tile& tile, Shared& s) {
    i64 voxels = (i64)a.output_size[0] * a.output_size[1] * a.output_size[2];
    int largest = 0, inside = threadIdx.x % VOXELS;
    Voxel v = voxel_of(a, tile, inside);
    const u16* from = a.grad_output + (i64)tile.batch * a.real_outputs * voxels + v.index;
    u16* to = s.grad_output + inside * (a.outputs + PADDING);
    for (int output = threadIdx.x / VOXELS; output < a.outputs; output += THREADS / VOXELS) {
        u16 value = v.exists && output < a.real_outputs ? from[output * voxels] : 0;
        to[output] = value;
        // the bits of what is no number are larger than infinity's, and those larger than all others
        int bits = __float_as_int(fabsf(to_float(value)));
        largest = bits > largest ? bits : largest;
    }
    if (largest > 0) atomicMax(&s.largest, largest);
}

// A power of two that takes the largest dS possible to between 2^13 and 2^15, so that float16 holds it; 1 for bfloat16.
// What is not finite stays so.
__device__ __forceinline__ float scale_of(float bound) {
    if (!HALF || !(bound > 0.0f) || bound > 1e30f) return 1.0f;
    int exponent = (__float_as_int(bound) >> 23) - 127;
    exponent = exponent < -90 ? -90 : exponent;
    return __int_as_float((14 - exponent + 127) << 23);
}

// dS of all samples for 32 channels, sorted: a tap after the other, 64 voxels at once.
__device__ __forceinline__ void grad_samples(const Arguments& a, const Tile& tile, Shared& s, int channel, float scale) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, width = a.outputs + PADDING;
    for (int tap = threadIdx.x / 32; tap < TAPS_AT_ONCE; tap += WARPS) {
        float sums[4][4][4] = {};  // of 16 voxels, of a chunk of channels
        int entry = tile.group * TAPS + tile.first_tap + tap;
        for (int output = 0; output < a.outputs && tile.first_tap + tap < TAPS; output += 16) {
            u32 weights[4][2];
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                int c = channel + 16 * (j / 2) + 4 * (g / 2) + 2 * (j % 2) + g % 2;
                const u16* row = a.weight + ((i64)entry * a.channels + c) * a.outputs + output + 2 * t;
                weights[j][0] = c < a.channels ? *(const u32*)row : 0;
                weights[j][1] = c < a.channels ? *(const u32*)(row + 8) : 0;
            }
#pragma unroll
            for (int m = 0; m < 4; ++m) {
                u32 grads[4];
                load_matrices(grads, s.grad_output + (16 * m + lane % 16) * width + output + 8 * (lane / 16));
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    product(sums[m][j], grads, weights[j][0], weights[j][1], sums[m][j]);
            }
        }
#pragma unroll
        for (int m = 0; m < 4; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                int slot = s.slot_of[tap * VOXELS + 16 * m + 8 * half + g];
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    float* sum = sums[m][j] + 2 * half;
                    ((u32*)chunk_of(s, slot, j))[t] = pair(sum[0] * scale, sum[1] * scale);
                }
            }
    }
}

// The gradient of a row of 16 voxels from the samples in the cells around it, added to memory.
__device__ __forceinline__ void grad_of_voxels(
    const Arguments& a, const Tile& tile, Shared& s, int row, int channel, float unscale) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int z = row / ROWS_Y, y = row % ROWS_Y, in_map[2] = {tile.origin[0] + z, tile.origin[1] + y};
    if (in_map[0] < 0 || in_map[0] >= a.size[0] || in_map[1] < 0 || in_map[1] >= a.size[1]) return;
    float sums[4][4] = {};
    int low = y > 0 ? y - 1 : 0, high = y < WINDOW_Y ? y : WINDOW_Y - 1;
    int block = 0;
    bool any = false;
    for (int cell_z = AXES == 3 ? z - 1 : z; cell_z <= z; ++cell_z) {
        if (cell_z < 0 || cell_z >= WINDOW_Z) continue;
        int first = s.start[cell_z * WINDOW_Y + low], last = s.start[cell_z * WINDOW_Y + high + 1];
        if (first == last) continue;
        // Whole blocks of 16 samples, each of them once: those of other cells have no weight here.
        block = first / BLOCK > block ? first / BLOCK : block;
        for (; BLOCK * block < last; ++block) {
            any = true;
            // A thread has the weight along z and y of one sample, and takes those of four.
            int own = BLOCK * block + lane % 16;
            float weight = tent(s.position[0][own] - z) * tent(s.position[1][own] - y);
            u32 weights[4], grads[4];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float first_weight = __shfl_sync(0xffffffff, weight, 8 * half + 2 * t);
                float second_weight = __shfl_sync(0xffffffff, weight, 8 * half + 2 * t + 1);
                float2 at = *(float2*)&s.position[2][BLOCK * block + 8 * half + 2 * t];
#pragma unroll
                for (int beside = 0; beside < 2; ++beside)
                    weights[2 * half + beside] = pair(tent(at.x - (g + 8 * beside)) * first_weight,
                                                      tent(at.y - (g + 8 * beside)) * second_weight);
            }
#pragma unroll
            for (int two = 0; two < 4; two += 2) {
                load_transposed(grads, chunk_of(s, BLOCK * block + lane % 16, two + lane / 16));
                product(sums[two], weights, grads[0], grads[1], sums[two]);
                product(sums[two + 1], weights, grads[2], grads[3], sums[two + 1]);
            }
        }
    }
    if (!any) return;
    int place = in_map[0] * tile.along_z + in_map[1] * tile.along_y + (tile.origin[2] + g) * tile.along_x;
#pragma unroll
    for (int beside = 0; beside < 2; ++beside) {
        int x = tile.origin[2] + g + 8 * beside;
        if (x < 0 || x >= a.size[2]) continue;
        float* to = tile.grad_table + place + 8 * beside * tile.along_x + channel + 4 * t;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float values[4];
            u32 bits = 0;  // all of zeros but for their signs
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                values[c] = sums[2 * half + c / 2][2 * beside + c % 2] * unscale;
                bits |= 2 * __float_as_uint(values[c]);
            }
            if (bits != 0 && channel + 16 * half < a.channels)
                add_four(to + 16 * half, values[0], values[1], values[2], values[3]);
        }
    }
}

// 8 of a voxel's 32 channels from `channel` on, 4 of each half; 0 for what does not exist.
__device__ __forceinline__ uint4 features(const Arguments& a, const u16* from, int channel, bool exists) {
    uint2 low = load_if(exists, from), high = load_if(exists && channel + 16 < a.channels, from + 16);
    return make_uint4(low.x, low.y, high.x, high.y);
}

// The gradients by the offsets of the samples in a row of cells, from the rows of voxels around it.
__device__ __forceinline__ void grad_of_offsets(
    const Arguments& a, const Tile& tile, Shared& s, int cells, int channel, float unscale) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    int first = s.start[cells], last = s.start[cells + 1], z = cells / WINDOW_Y, y = cells % WINDOW_Y;
    if (first == last) return;
    // Of a step and half: with three axes displaced, steps go along y and halves along z; with two, halves along y.
    uint4 rows[STEPS][2][2];
    int at[3] = {tile.origin[0] + z, tile.origin[1] + y, tile.origin[2] + g};
    int corner = at[0] * tile.along_z + at[1] * tile.along_y + at[2] * tile.along_x + channel + 4 * t;
    bool near = at[2] >= 0 && at[2] < a.size[2], further = at[2] + 8 >= 0 && at[2] + 8 < a.size[2];
#pragma unroll
    for (int step = 0; step < STEPS; ++step)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            int up = AXES == 3 ? half : 0, back = AXES == 3 ? step : half;
            bool inside = at[0] + up >= 0 && at[0] + up < a.size[0] && at[1] + back >= 0 && at[1] + back < a.size[1];
            const u16* from = tile.table + (corner + up * tile.along_z + back * tile.along_y);
            rows[step][half][0] = features(a, from, channel, inside && near);
            rows[step][half][1] = features(a, from + 8 * tile.along_x, channel, inside && further);
        }
    float* products = s.products[threadIdx.x / 32];
    for (int block = first / BLOCK; BLOCK * block < last; ++block) {
        u32 low[4], high[4];  // 16 channels each, in the order in which a thread has them of a voxel
        load_matrices(low, chunk_of(s, BLOCK * block + lane % 16, lane / 16));
        load_matrices(high, chunk_of(s, BLOCK * block + lane % 16, 2 + lane / 16));
        // A thread has a sample, and one half of the voxels around it.
        int slot = BLOCK * block + lane % 16, second = lane / 16;
        float at_x = s.position[2][slot], part_y = s.position[1][slot] - y, part_z = s.position[0][slot] - z;
        int x = at_x < CELLS_X - 1 ? (int)at_x : CELLS_X - 1;
        float by_z = 0.0f, by_y = 0.0f, by_x = 0.0f;
#pragma unroll
        for (int step = 0; step < STEPS; ++step) {
            const float nothing[4] = {};
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
                for (int beside = 0; beside < 2; ++beside) {
                    uint4 row = rows[step][half][beside];
                    float sums[4];
                    product(sums, low, row.x, row.y, nothing);
                    product(sums, high, row.z, row.w, sums);
                    float* to = products + half * HALF_OF_PRODUCTS + g * PRODUCTS + 8 * beside + 2 * t;
                    *(float2*)to = make_float2(sums[0], sums[1]);
                    *(float2*)(to + 8 * PRODUCTS) = make_float2(sums[2], sums[3]);
                }
            __syncwarp();
            const float* points = products + second * HALF_OF_PRODUCTS + lane % 16 * PRODUCTS + x;
            float slope = points[1] - points[0], line = points[0] + slope * (at_x - x);
            int back = AXES == 3 ? step : second;
            float weight = back ? part_y : 1.0f - part_y;
            by_z += line * weight;
            by_y += back ? line : -line;
            by_x += slope * weight;
            __syncwarp();
        }
        if (AXES == 3) {
            float weight = second ? part_z : 1.0f - part_z;
            by_y *= weight;
            by_x *= weight;
            by_z = second ? by_z : -by_z;
            by_z += __shfl_xor_sync(0xffffffff, by_z, 16);
        }
        by_y += __shfl_xor_sync(0xffffffff, by_y, 16);
        by_x += __shfl_xor_sync(0xffffffff, by_x, 16);
        if (lane < 16 && slot >= first && slot < last) {
            if (AXES == 3) s.grad_offset[0][slot] += by_z * unscale;
            s.grad_offset[AXES - 2][slot] += by_y * unscale;
            s.grad_offset[AXES - 1][slot] += by_x * unscale;
        }
    }
}

// Both gradients of a sample beyond the window: each thread has one of the 8 points around it and 8 channels.
__device__ __forceinline__ void grads_of_sample(
    const Arguments& a, const Tile& tile, Shared& s, int slot, int channel, float unscale) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float position[3];
    for (int axis = 0; axis < 3; ++axis) position[axis] = s.position[axis][slot] + tile.origin[axis];
    // A position that is no number makes all weights so; they have to reach some voxel.
    bool unknown = is_nan(position[0]) || is_nan(position[1]) || is_nan(position[2]), exists = true;
    float weight = 1.0f, by_axis = 1.0f;  // thread t has the derivative along the t-th displaced axis
    int point[3];
#pragma unroll
    for (int axis = 0; axis < 3; ++axis) {
        bool displaced = axis >= 3 - AXES;
        int up = g >> (2 - axis) & 1;
        point[axis] = (is_nan(position[axis]) ? 0 : (int)floorf(position[axis])) + up;
        float distance = position[axis] - point[axis];
        float along = 1.0f - fabsf(distance) < 0.0f ? 0.0f : 1.0f - fabsf(distance);
        float slope = distance >= -1.0f && distance < 1.0f ? (distance < 0.0f ? 1.0f : -1.0f) : 0.0f;
        weight *= along;
        by_axis *= axis - (3 - AXES) == t ? slope : along;
        exists &= (point[axis] >= 0 && point[axis] < a.size[axis] && (displaced || up == 0)) || unknown;
        point[axis] = point[axis] < 0 ? 0 : point[axis] >= a.size[axis] ? a.size[axis] - 1 : point[axis];
    }
    int place = point[0] * tile.along_z + point[1] * tile.along_y + point[2] * tile.along_x + channel + 4 * t;
    uint4 row = features(a, tile.table + place, channel, exists);
    u32 parts[4] = {row.x, row.y, row.z, row.w};
    float grads[8], sum = 0.0f;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        u32 two = ((u32*)chunk_of(s, slot, j))[t];
        grads[2 * j] = to_float((u16)two) * unscale;
        grads[2 * j + 1] = to_float((u16)(two >> 16)) * unscale;
        sum += to_float((u16)parts[j]) * grads[2 * j] + to_float((u16)(parts[j] >> 16)) * grads[2 * j + 1];
    }
    sum += __shfl_xor_sync(0xffffffff, sum, 1);
    sum += __shfl_xor_sync(0xffffffff, sum, 2);
    by_axis *= sum;
    by_axis += __shfl_xor_sync(0xffffffff, by_axis, 4);
    by_axis += __shfl_xor_sync(0xffffffff, by_axis, 8);
    by_axis += __shfl_xor_sync(0xffffffff, by_axis, 16);
    if (g == 0 && t < AXES) s.grad_offset[t][slot] += by_axis;
    if (!exists || weight == 0.0f) return;
    float* to = tile.grad_table + place;
    add_four(to, grads[0] * weight, grads[1] * weight, grads[2] * weight, grads[3] * weight);
    if (channel + 16 < a.channels)
        add_four(to + 16, grads[4] * weight, grads[5] * weight, grads[6] * weight, grads[7] * weight);
}

__device__ __forceinline__ void store_grad_offset(const Arguments& a, const Tile& tile, Shared& s) {
    i64 voxels = (i64)a.output_size[0] * a.output_size[1] * a.output_size[2];
    Voxel v = voxel_of(a, tile, threadIdx.x % VOXELS);
    if (!v.exists) return;
    i64 first = ((i64)(tile.batch * a.groups + tile.group) * TAPS + tile.first_tap) * AXES * voxels + v.index;
    for (int tap = threadIdx.x / VOXELS; tap < TAPS_AT_ONCE && tile.first_tap + tap < TAPS; tap += TAPS_A_ROUND) {
        int slot = s.slot_of[tap * VOXELS + threadIdx.x % VOXELS];
#pragma unroll
        for (int axis = 0; axis < AXES; ++axis) {
            float value = s.grad_offset[axis][slot];
            i64 index = first + (tap * AXES + axis) * voxels;
#if WIDE_OFFSETS
            ((float*)a.grad_offset)[index] = value;
#else
            ((u16*)a.grad_offset)[index] = (u16)pair(value, 0.0f);
#endif
        }
    }
}

// A block per tile, range of taps, and sample of the batch with offset group.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) gradient_by_samples(const Arguments a) {
    Shared& s = *(Shared*)shared;
    Tile tile;
    tile.batch = blockIdx.z / a.groups;
    tile.group = blockIdx.z % a.groups;
    tile.first_tap = blockIdx.y * TAPS_AT_ONCE;
    int tiles_x = (a.output_size[2] + TILE_X - 1) / TILE_X, tiles_y = (a.output_size[1] + TILE_Y - 1) / TILE_Y;
    tile.voxel[0] = blockIdx.x / (tiles_x * tiles_y) * TILE_Z;
    tile.voxel[1] = blockIdx.x / tiles_x % tiles_y * TILE_Y;
    tile.voxel[2] = blockIdx.x % tiles_x * TILE_X;
    const int margins[3] = {MARGIN_Z, MARGIN_Y, MARGIN_X};
    for (int axis = 0; axis < 3; ++axis)
        tile.origin[axis] = tile.voxel[axis] * a.stride[axis] - a.padding[axis] - margins[axis];
    tile.along_x = a.groups * a.channels;
    tile.along_y = tile.along_x * a.size[2];
    tile.along_z = tile.along_y * a.size[1];
    i64 before = (i64)tile.batch * tile.along_z * a.size[0] + tile.group * a.channels;
    tile.table = a.table + before;
    tile.grad_table = a.grad_table + before;

    if (threadIdx.x == 0) s.largest = 0;
    sort_samples(a, tile, s);
    load_grad_output(a, tile, s);
    __syncthreads();
    float scale = scale_of(__int_as_float(s.largest) * *a.bound), unscale = 1.0f / scale;
    for (int channel = 0; channel < a.channels; channel += CHANNELS) {
        if (threadIdx.x == 0) s.next = 0;
        grad_samples(a, tile, s, channel, scale);
        __syncthreads();
        // Rows and samples are taken by whichever warp is free, as they hold more or less.
        int beyond = s.start[BEYOND + 1] - s.start[BEYOND];
        while (true) {
            int task = 0;
            if (threadIdx.x % 32 == 0) task = atomicAdd(&s.next, 1);
            task = __shfl_sync(0xffffffff, task, 0);
            if (task < VOXEL_ROWS)
                grad_of_voxels(a, tile, s, task, channel, unscale);
            else if (task < VOXEL_ROWS + CELL_ROWS)
                grad_of_offsets(a, tile, s, task - VOXEL_ROWS, channel, unscale);
            else if (task < VOXEL_ROWS + CELL_ROWS + beyond)
                grads_of_sample(a, tile, s, s.start[BEYOND] + task - VOXEL_ROWS - CELL_ROWS, channel, unscale);
            else
                break;
        }
        __syncthreads();
    }
    store_grad_offset(a, tile, s);
}
