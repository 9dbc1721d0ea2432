// Runs the scan's CUDA sources on a CPU: lanes in turns from wait to wait, one program after the other.
// "kernel.inc" is its text.
//
// Every third look at what other programs have written comes too early, as it may on a GPU.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#define EMULATED
#define DEVICE static inline
#define KERNEL(threads, resident) static void
#define CONSTANT

using std::max;
using std::min;

struct Index {
  unsigned x;
};
struct Quad;
struct Pair;

struct Group {  // of lanes that wait for each other
  int size, arrived, turn, against;
  bool vote;
};

struct Lane {
  ucontext_t context;
  float handed;
  std::vector<char> stack;
  int looks;
  bool done;
};

static Index threadIdx, blockIdx;
static unsigned char* memory;
static ucontext_t scheduler;
static std::vector<Lane> lanes;
static std::vector<Group> groups;  // the warps, then everyone

static void wait_in(Group& group) {
  int turn = group.turn;
  if (++group.arrived == group.size) {
    group.arrived = 0;
    group.turn++;
    group.vote = group.against == 0;
    group.against = 0;
  }
  while (group.turn == turn) swapcontext(&lanes[threadIdx.x].context, &scheduler);
}

static void __syncthreads() { wait_in(groups.back()); }
static void __syncwarp() { wait_in(groups[threadIdx.x / 32]); }

static bool __all_sync(unsigned, bool vote) {
  Group& warp = groups[threadIdx.x / 32];
  warp.against += !vote;
  wait_in(warp);
  return warp.vote;
}

static float __shfl_xor_sync(unsigned, float value, int bit) {
  lanes[threadIdx.x].handed = value;
  __syncwarp();
  float found = lanes[threadIdx.x ^ bit].handed;
  __syncwarp();
  return found;
}

static int atomicAdd(int* counter, int value) {
  int before = *counter;
  *counter += value;
  return before;
}

static float from_bits(unsigned bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

static unsigned to_bits(float value) {
  unsigned bits;
  memcpy(&bits, &value, 4);
  return bits;
}

static float exp2_fast(float x) { return exp2f(x); }
static float reciprocal(float x) { return 1 / x; }
static float least(float x, float y) { return x != x || x < y ? x : y; }

static unsigned half_bits(float value) {
  _Float16 narrow = value;
  unsigned short bits;
  memcpy(&bits, &narrow, 2);
  return bits;
}

static float half_value(unsigned short bits) {
  _Float16 narrow;
  memcpy(&narrow, &bits, 2);
  return narrow;
}

static unsigned bf16_bits(float value) {
  unsigned bits = to_bits(value);
  return value != value ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static unsigned pack_half(float low, float high) { return half_bits(low) | half_bits(high) << 16; }
static unsigned pack_bf16(float low, float high) { return bf16_bits(low) | bf16_bits(high) << 16; }

static void copy_async(void* to, const void* from, bool there) {
  memset(to, 0, 16);
  if (there) memcpy(to, from, 16);
}

static void end_group() {}
template <int Left>
static void wait_for_group() {}
static Pair unpack_half(unsigned word);
static void publish(Quad* to, Quad value);
static Quad look(const Quad* from);

#include "kernel.inc"

template <class T>
static T only_argument(void (*)(T));
using Given = decltype(only_argument(ENTRY));

static Pair unpack_half(unsigned word) {
  return {half_value((unsigned short)word), half_value((unsigned short)(word >> 16))};
}

static void publish(Quad* to, Quad value) { *to = value; }

static Quad look(const Quad* from) {
  const unsigned empty = 0xffffffffu;
  if (lanes[threadIdx.x].looks++ % 3 == 0) return {empty, empty, empty, empty};
  return *from;
}

static const Given* given;

static void live() {
  ENTRY(*given);
  lanes[threadIdx.x].done = true;
}

static void run_program(int threads) {
  groups.assign(threads / 32, {32, 0, 0, 0, true});
  groups.push_back({threads, 0, 0, 0, true});
  for (Lane& lane : lanes) {
    lane.looks = 0;
    lane.done = false;
    getcontext(&lane.context);
    lane.context.uc_stack.ss_sp = lane.stack.data();
    lane.context.uc_stack.ss_size = lane.stack.size();
    lane.context.uc_link = &scheduler;
    makecontext(&lane.context, live, 0);
  }
  for (bool busy = true; busy;) {
    busy = false;
    for (int i = 0; i < threads; i++) {
      if (lanes[i].done) continue;
      busy = true;
      threadIdx.x = i;
      swapcontext(&scheduler, &lanes[i].context);
    }
  }
}

extern "C" void run(const Given* arguments, int programs, int threads, int shared_bytes) {
  given = arguments;
  lanes.resize(threads);
  for (Lane& lane : lanes) lane.stack.resize(1 << 16);
  memory = (unsigned char*)aligned_alloc(16, (shared_bytes + 15) / 16 * 16);
  for (int i = 0; i < programs; i++) {
    blockIdx.x = i;
    memset(memory, 0xff, shared_bytes);
    run_program(threads);
  }
  free(memory);
}
