// All layers of a step for many rows: one kernel, fp16 products, for GPUs that multiply by
// warpgroups (compute capability 9.0).
//
// Given by the compiler's command line:
//   DI, HIDDEN, LAYERS, HEAD   channels, feed-forward units, layers, hidden units of the head
//   STAGES                     pieces of weights at hand
//
// Rows have nothing to do with one another: a program takes 64 of them through all layers, and what
// lies between the phases stays in registers, in shared memory or, put aside, in the L2 cache.
// Operands of products come from registers, in the form in which sums come out of them, so that
// numbers change hands only in sums over a row. Two programs share a multiprocessor and drift
// apart, so that one's states move while the other multiplies.

constexpr int DM = 256;

#include "layers_machine.cuh"
#include "layers_parts.cuh"
#include "layers_rows.cuh"

DEVICE uint4& kept_step(float4* kept, int step) {
  return *reinterpret_cast<uint4*>(kept + (32 + step) * 128 + threadIdx.x);
}

// Tokens, convolution and selection of a layer: leaves active tokens aside, B in ``shared.b``, and
// what gates are made from.
DEVICE void filter(
    const Arguments& args, Stream& stream, float4* kept, const Rows& rows, Chunks& chunks,
    int layer, int column, const u32 (&a)[16][4], u32 (&low)[6][4]) {
  const float* channels = args.channels + layer * (LINES * DI);
  float* windows = entry(args, 2 + 2 * layer);
  float sums[56];
  clear(sums);
#pragma unroll 1
  for (int group = 0; group < GROUPS; ++group) {
    float d[32];
    project(stream, a, d);
    u32 active[4][4];
    convolve(windows, channels, rows, group * 64 + 2 * column, chunks, d, active);
    const u64 piece = stream.take();
    begin_products();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      multiply(sums, active[k], part_of(piece, 0, k));
      store_step(kept_step(kept, group * 4 + k), active[k]);
    }
    end_products();
    await_products();
    stream.leave<1>();
  }
#pragma unroll
  for (int i = 0; i < 24; ++i) low[i / 4][i % 4] = pack(sums[i * 2], sums[i * 2 + 1]);
#pragma unroll
  for (int i = 0; i < 8; ++i)
    stream.shared.b[i / 4 * 8 + column + i % 2][own_row() + i % 4 / 2 * 8] = sums[48 + i];
  __syncwarp();
}

// Gates and recurrence of a group; the outputs replace its active tokens.
DEVICE void recur_group(
    const Arguments& args, Stream& stream, float4* kept, const Rows& rows, Chunks& chunks,
    int layer, int group, int column, const u32 (&a)[16][4], const u32 (&low)[6][4]) {
  const int first = group * 64 + 2 * column;
  const float* channels = args.channels + layer * (LINES * DI) + 5 * DI + first;
  float2 b[2];
  float4* place[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = own_row() + 8 * r;
    b[r] = make_float2(stream.shared.b[group][row] + 1.0f, stream.shared.b[GROUPS + group][row]);
    float* states = entry(args, 3 + 2 * layer) + rows.slot[r] * (2 * DI) + 2 * first;
    place[r] = reinterpret_cast<float4*>(states);
  }
  u32 active[4][4], gate[4][4];
#pragma unroll
  for (int k = 0; k < 4; ++k) load_step(kept_step(kept, group * 4 + k), active[k]);
  {
    float d[32];
    project(stream, a, d);
#pragma unroll
    for (int i = 0; i < 16; ++i) gate[i / 4][i % 4] = pack(silu(d[i * 2]), silu(d[i * 2 + 1]));
  }
  float y[32];
  const u64 piece = stream.take();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    float alpha[8], omega[8], step[8];
    clear(alpha);
    clear(omega);
    clear(step);
    const u64 part = piece + k * 128;
    begin_products();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      multiply(alpha, low[i], part_of(part, 0, i));
      multiply(omega, low[2 + i], part_of(part, 0, 2 + i));
      multiply(step, low[4 + i], part_of(part, 1, i));
    }
    end_products();
    float4 h[4];
    chunks.take(h);
    await_products();
    recur_step(channels + k * 16, rows, alpha, omega, step, active[k], b, h, &y[k * 8]);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      store_once(place[i % 2] + k * 8 + i / 2, h[i], rows.live[i % 2]);
  }
  stream.leave<1>();
  finish_group(args, channels, y, gate, active);
#pragma unroll
  for (int k = 0; k < 4; ++k) store_step(kept_step(kept, group * 4 + k), active[k]);
}

// Output projection and feed-forward layer.
DEVICE void mix(const Arguments& args, Stream& stream, float4* kept, float (&x)[2][64]) {
#pragma unroll 1
  for (int group = 0; group < GROUPS; ++group) {
    u32 a[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) load_step(kept_step(kept, group * 4 + k), a[k]);
    add(stream, x, a);
  }
  keep_normed(args, stream.shared, x);
#pragma unroll 1
  for (int block = 0; block < HIDDEN / 64; ++block) {
    u32 mixed[4][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float d[32];
      project_kept(stream, d);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float* gate = &d[i * 2];
        mixed[half * 2 + i / 4][i % 4] = pack(silu(gate[0]) * gate[16], silu(gate[1]) * gate[17]);
      }
    }
    add(stream, x, mixed);
  }
}

DEVICE void layer(
    const Arguments& args, Stream& stream, float4* kept, const Rows& rows, int layer, int column,
    float (&x)[2][64]) {
  {
    Chunks chunks(args, rows, stream.shared, layer, 2 * column);
#pragma unroll
    for (int place = 0; place < PLACES; ++place) chunks.ask(place);
    u32 a[16][4], low[6][4];
    float scale[2];
    norm(args, x, scale);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const float* v = &x[i / 16][i % 16 * 4];
      kept[i * 128 + threadIdx.x] = make_float4(v[0], v[1], v[2], v[3]);
      if (i < 16) normed(x, scale, i, a[i]);
    }
    filter(args, stream, kept, rows, chunks, layer, column, a, low);
#pragma unroll 1
    for (int group = 0; group < GROUPS; ++group)
      recur_group(args, stream, kept, rows, chunks, layer, group, column, a, low);
  }
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const float4 v = kept[i * 128 + threadIdx.x];
    float* to = &x[i / 16][i % 16 * 4];
    to[0] = v.x;
    to[1] = v.y;
    to[2] = v.z;
    to[3] = v.w;
  }
  mix(args, stream, kept, x);
}

DEVICE void head(
    const Arguments& args, Stream& stream, u32* hidden, const float (&x)[2][64]) {
  keep_normed(args, stream.shared, x);
#pragma unroll 1
  for (int block = 0; block < HEAD / 64; ++block) {
    float d[32];
    project_kept(stream, d);
#pragma unroll
    for (int i = 0; i < 16; ++i)
      hidden[i % 2 * (4 * HEAD) + block * 32 + i / 2 * 4] = pack(silu(d[i * 2]), silu(d[i * 2 + 1]));
  }
}

KERNEL(128, 2) layers_kernel(const Arguments args) {
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int column = threadIdx.x % 4 * 2;
  if (threadIdx.x == 0)
    for (int i = 0; i < STAGES; ++i) prepare(&shared.full[i], 1);
  barriers_prepared();
  const int tiles = (args.rows + 63) / 64;
  const u32 turns = (tiles - blockIdx.x + gridDim.x - 1) / gridDim.x;
  Stream stream(shared, args.pieces, turns * PIECES);
  for (int i = 0; i < STAGES; ++i) stream.ask();
  float4* kept = args.kept + (u64)blockIdx.x * (KEPT * 128);
#pragma unroll 1
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const Rows rows = rows_of(args, tile * 64);
    const int row = tile * 64 + own_row();
    float x[2][64];
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      const float* place = args.x + (u64)(row + i % 2 * 8) * DM + i / 2 * 8 + column;
      const float2 pair = *reinterpret_cast<const float2*>(place);
      x[i / 32][i % 32 * 2] = pair.x;
      x[i / 32][i % 32 * 2 + 1] = pair.y;
    }
#pragma unroll 1
    for (int i = 0; i < LAYERS; ++i) layer(args, stream, kept, rows, i, column, x);
    head(args, stream, args.hidden + (u64)row * (HEAD / 2) + column / 2, x);
  }
}
