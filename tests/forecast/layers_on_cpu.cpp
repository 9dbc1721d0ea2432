// Runs layers.cu on a CPU: a thread for every thread of a program, one program after the other.
// "kernel.inc" is its text.
//
// Products are computed as the machine does as far as memory goes: operands are put
// together from its threads' words, weights are found through descriptors and their swizzle.

#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define EMULATED
#define DEVICE static inline
#define KERNEL(threads, resident) static void
#define __device__
#define __forceinline__ inline

typedef unsigned int u32;
typedef unsigned long long u64;
struct Index { unsigned x; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct uint4 { u32 x, y, z, w; };

static thread_local Index threadIdx, blockIdx;
static Index gridDim;
static unsigned char* memory;
static std::vector<std::unique_ptr<std::barrier<>>> warps;
static std::barrier<>* everyone;
static std::vector<float> handed;
static float operands[64][16];

static float2 make_float2(float x, float y) { return {x, y}; }
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
template <class T> static T __ldg(const T* place) { return *place; }
template <class T> static void store_once(T* place, T value, bool there) {
  if (there) *place = value;
}
static float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static float exp2_fast(float x) { return exp2f(x); }
static float reciprocal(float x) { return 1.0f / x; }
static float least(float x, float y) { return x != x || x < y ? x : y; }
static float greatest(float x, float y) { return x != x || x > y ? x : y; }

static float __int_as_float(int bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static u32 half_bits(float value) {
  _Float16 narrow = value;
  unsigned short bits;
  memcpy(&bits, &narrow, sizeof bits);
  return bits;
}

static float half_value(unsigned short bits) {
  _Float16 narrow;
  memcpy(&narrow, &bits, sizeof bits);
  return narrow;
}

static u32 pack(float low, float high) { return half_bits(low) | half_bits(high) << 16; }
static float2 unpack(u32 word) { return {half_value(word), half_value(word >> 16)}; }
static void __syncwarp() { warps[threadIdx.x / 32]->arrive_and_wait(); }
static void __syncthreads() { everyone->arrive_and_wait(); }

static float __shfl_xor_sync(u32, float value, int bit) {
  handed[threadIdx.x] = value;
  __syncwarp();
  float found = handed[threadIdx.x ^ bit];
  __syncwarp();
  return found;
}

struct Barrier {
  std::atomic<u32> turns;
  std::atomic<unsigned short> missing;
  unsigned short count;
};
static_assert(sizeof(Barrier) == sizeof(u64));

static Barrier& barrier(u64* place) { return *reinterpret_cast<Barrier*>(place); }

static void prepare(u64* place, u32 count) {
  barrier(place).turns = 0;
  barrier(place).missing = barrier(place).count = count;
}

static void barriers_prepared() { __syncthreads(); }

static void arrive(u64* place) {
  if (barrier(place).missing.fetch_sub(1) != 1) return;
  barrier(place).missing = barrier(place).count;
  barrier(place).turns++;
}

static bool is_over(u64* place, u32 parity) {
  bool over = (barrier(place).turns & 1) != parity;
  if (!over) std::this_thread::yield();
  return over;
}

static void copy_piece(void* to, const void* from, u64* place, bool wanted) {
  if (!wanted) return;
  memcpy(to, from, 16384);
  arrive(place);
}

static u64 used_once() { return 0; }
static void end_copies() {}
static void await_copies() {}

static void copy_ahead(void* to, const float* from, bool there, u64) {
  if (reinterpret_cast<u64>(from) % 16 || reinterpret_cast<u64>(to) % 16) abort();
  memset(to, 0, 16);
  if (there) memcpy(to, from, 16);
}

static u64 descriptor(const void* place) {
  return (u64)(static_cast<const unsigned char*>(place) - memory) >> 4 | 64ull << 32;
}

static void begin_products() {}
static void end_products() {}
static void await_products() {}

template <int N>
static void multiply(float (&d)[N], const u32 (&a)[4], u64 weights) {
  const int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane / 4;
  const int column = lane % 4 * 2;
  __syncthreads();
  for (int i = 0; i < 4; ++i) {
    float2 pair = unpack(a[i]);
    operands[row + i % 2 * 8][column + i / 2 * 8] = pair.x;
    operands[row + i % 2 * 8][column + i / 2 * 8 + 1] = pair.y;
  }
  __syncthreads();
  const u64 start = (weights & 0x3fff) << 4, eight_rows = (weights >> 32 & 0x3fff) << 4;
  for (int i = 0; i < N; ++i) {
    const int n = i / 4 * 8 + column + i % 2;
    for (int k = 0; k < 16; ++k) {
      u64 place = start + n / 8 * eight_rows + n % 8 * 128 + k * 2;
      place ^= (place >> 7 & 7) << 4;
      unsigned short weight;
      memcpy(&weight, memory + place, sizeof weight);
      d[i] += operands[row + i / 2 % 2 * 8][k] * half_value(weight);
    }
  }
}

#include "kernel.inc"

extern "C" void run(const Arguments* args, int programs, int threads, int shared_bytes) {
  if (shared_bytes < (int)sizeof(Shared)) abort();
  gridDim.x = programs;
  memory = static_cast<unsigned char*>(aligned_alloc(1024, (shared_bytes + 1023) / 1024 * 1024));
  handed.resize(threads);
  std::barrier<> all(threads);
  everyone = &all;
  warps.clear();
  for (int i = 0; i < threads / 32; ++i) warps.push_back(std::make_unique<std::barrier<>>(32));
  for (int program = 0; program < programs; ++program) {
    memset(memory, 0xff, shared_bytes);
    std::vector<std::thread> running;
    for (int thread = 0; thread < threads; ++thread)
      running.emplace_back([=] {
        threadIdx.x = thread;
        blockIdx.x = program;
        layers_kernel(*args);
      });
    for (auto& thread : running) thread.join();
  }
  free(memory);
}
