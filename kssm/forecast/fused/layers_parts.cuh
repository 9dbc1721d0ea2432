// What the phases of layers.cu share: memory, the stream of weights, products, the norm.
//
// A program is a warpgroup and takes 64 rows; a thread holds columns 8 j + 2 (lane % 4) + {0, 1} of rows
// lane / 4 and lane / 4 + 8 of its warp's sixteen, in sums and in operands alike. Sums d hold
// for each j both rows' pairs; an operand's step of sixteen columns, a word a pair, the pairs of
// j even, then odd. Channels are put in an order in which a thread's four columns of sixteen are
// neighbours in memory: 4 (lane % 4) + {0, 1, 2, 3}.

constexpr int GROUPS = DI / 64;
constexpr int PIECE = 16384;
constexpr int LAYER_PIECES = 8 * GROUPS + HIDDEN / 64 * 6;
constexpr int PIECES = LAYERS * LAYER_PIECES + HEAD / 64 * 2;
constexpr int LINES = 13;                                  // of a layer's table of channels
constexpr int KEPT = 32 + 4 * GROUPS;                      // quads a thread
constexpr int PLACES = 3;                                  // of chunks of states
constexpr int CHUNK = 6;                                   // quads a thread, of a chunk

struct Arguments {
  const unsigned char* pieces;   // [PIECES, PIECE]: the weights in the order of their use
  const float* channels;         // [LAYERS, LINES, DI], as listed in kernel_block.py
  const float* x;                // [room, DM]: embedded samples
  u32* hidden;                   // [room, HEAD / 2]: pairs of the head's hidden units, fp16
  const long long* slots;
  const double* dt;
  const long long* table;        // addresses of the arena's entries
  float4* kept;                  // [programs, KEPT, 128]: residual stream, tokens as operands
  float eps, group_eps;
  int rows;
};

struct Shared {
  uint4 ring[STAGES][PIECE / sizeof(uint4)];
  uint4 own[PLACES * CHUNK][128];  // a thread's chunks of states; steps of the norm as an operand
  float b[16][64];                 // both parts for every group, of every row
  u64 full[STAGES];
};

DEVICE int own_row() { return threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4; }
DEVICE float silu(float x) { return x * reciprocal(1.0f + exp2_fast(x * -1.4426950408889634f)); }
DEVICE bool is_finite(float x) { return fabsf(x) < __int_as_float(0x7f800000); }
DEVICE float4 constants(const float* line) { return __ldg(reinterpret_cast<const float4*>(line)); }

DEVICE float sum_of_row(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

template <int N>
DEVICE void clear(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) d[i] = 0.0f;
}

DEVICE void load_step(const uint4& place, u32 (&a)[4]) {
  const uint4 step = place;
  a[0] = step.x;
  a[1] = step.y;
  a[2] = step.z;
  a[3] = step.w;
}

DEVICE void store_step(uint4& place, const u32 (&a)[4]) {
  place = make_uint4(a[0], a[1], a[2], a[3]);
}

// The weights come in pieces of 16 kB. Thread 0 asks for them as soon as there is a place; it does
// so without branches, because the compiler holds back every product of a program whose threads
// part between products.
struct Stream {
  Shared& shared;
  const unsigned char* pieces;
  u32 wanted, asked = 0, used = 0;

  __device__ Stream(Shared& shared, const unsigned char* pieces, u32 wanted)
      : shared(shared), pieces(pieces), wanted(wanted) {}

  __device__ __forceinline__ void ask() {
    const u32 stage = asked % STAGES;
    const unsigned char* from = pieces + (u64)(asked % PIECES) * PIECE;
    const bool ready = asked < wanted && threadIdx.x == 0;
    copy_piece(shared.ring[stage], from, &shared.full[stage], ready);
    ++asked;
  }

  // The next piece, once it is there.
  __device__ __forceinline__ u64 take() {
    const u32 stage = used % STAGES, parity = (used / STAGES) & 1;
    while (!is_over(&shared.full[stage], parity)) {
    }
    ++used;
    return descriptor(shared.ring[stage]);
  }

  // All threads have done with the last COUNT pieces.
  template <int COUNT>
  __device__ __forceinline__ void leave() {
    __syncthreads();
#pragma unroll
    for (int i = 0; i < COUNT; ++i) ask();
  }
};

// Within a piece: the tile of 64 x 64, and the sixteen columns of it.
DEVICE u64 part_of(u64 piece, int tile, int step) { return piece + tile * 512 + step * 2; }

// What the norm multiplies both rows of the residual stream with.
DEVICE void norm(const Arguments& args, const float (&x)[2][64], float (&scale)[2]) {
  float squares[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < 128; ++i) squares[i / 2 % 2] += x[i / 64][i % 64] * x[i / 64][i % 64];
#pragma unroll
  for (int r = 0; r < 2; ++r) scale[r] = rsqrtf(sum_of_row(squares[r]) * (1.0f / DM) + args.eps);
}

// A step of the norm as an operand.
DEVICE void normed(const float (&x)[2][64], const float (&scale)[2], int step, u32 (&a)[4]) {
  const float* pairs = &x[step / 8][step % 8 * 8];
#pragma unroll
  for (int i = 0; i < 4; ++i)
    a[i] = pack(pairs[2 * i] * scale[i % 2], pairs[2 * i + 1] * scale[i % 2]);
}

DEVICE void keep_normed(const Arguments& args, Shared& shared, const float (&x)[2][64]) {
  float scale[2];
  norm(args, x, scale);
#pragma unroll
  for (int step = 0; step < 16; ++step) {
    u32 a[4];
    normed(x, scale, step, a);
    store_step(shared.own[step][threadIdx.x], a);
  }
}

// Sixty-four columns of a product of the norm: two pieces.
DEVICE void project(Stream& stream, const u32 (&a)[16][4], float (&d)[32]) {
  clear(d);
  begin_products();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const u64 piece = stream.take();
#pragma unroll
    for (int k = 0; k < 8; ++k) multiply(d, a[half * 8 + k], part_of(piece, k / 4, k % 4));
    end_products();
  }
  await_products();
  stream.leave<2>();
}

// The same for a norm in shared memory: beside the residual stream there are few registers.
DEVICE void project_kept(Stream& stream, float (&d)[32]) {
  clear(d);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const u64 piece = stream.take();
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      u32 a[4][4];
#pragma unroll
      for (int k = 0; k < 4; ++k) load_step(stream.shared.own[half * 8 + tile * 4 + k][threadIdx.x], a[k]);
      begin_products();
#pragma unroll
      for (int k = 0; k < 4; ++k) multiply(d, a[k], part_of(piece, tile, k));
      end_products();
      await_products();
    }
  }
  stream.leave<2>();
}

// x += the product of sixty-four columns: two pieces, 128 outputs each.
DEVICE void add(Stream& stream, float (&x)[2][64], const u32 (&a)[4][4]) {
  begin_products();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const u64 piece = stream.take();
#pragma unroll
    for (int k = 0; k < 4; ++k) multiply(x[half], a[k], part_of(piece, 0, k));
    end_products();
  }
  await_products();
  stream.leave<2>();
}
