// All layers of a step for many rows: one kernel, fp16 products, for GPUs that multiply by
// warpgroups (compute capability 9.0).
//
// Given by the compiler's command line:
//   DI, HIDDEN, LAYERS, HEAD   channels, feed-forward units, layers, hidden units of the head
//   GANGS, STAGES              warpgroups that share the weights; pieces of them at hand
//
// Rows have nothing to do with one another: a gang takes 64 of them through all layers, and what
// lies between the phases stays in its registers, its shared memory or, put aside, in the L2
// cache. Operands of products come from registers, in the form in which sums come out of them, so
// that numbers change hands only in sums over a row. Gangs drift apart, so that one's states move
// while another multiplies.

constexpr int DM = 256;

#include "layers_machine.cuh"
#include "layers_parts.cuh"
#include "layers_rows.cuh"

// Input projection, convolution and selection of a layer: leaves gates aside, active tokens in
// ``gang.steps``, B in ``gang.b``, and what gates are made from.
DEVICE void filter(
    const Arguments& args, Stream& stream, Gang& gang, float4* kept, const Rows& rows, int layer,
    int column, const u32 (&a)[16][4], u32 (&low)[6][4]) {
  const float* channels = args.channels + layer * (LINES * DI);
  float* windows = entry(args, 2 + 2 * layer);
  float sums[56];
  clear(sums);
#pragma unroll 1
  for (int group = 0; group < GROUPS; ++group) {
    ask_ahead(args, rows, layer, group + AHEAD);
    float d[32];
    project(stream, a, d);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      u32 gate[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) gate[i] = pack(silu(d[k * 8 + i * 2]), silu(d[k * 8 + i * 2 + 1]));
      float4* place = kept + (32 + group * 4 + k) * 128 + own_thread();
      store_step(*reinterpret_cast<uint4*>(place), gate);
    }
    Past past[4];
    past[0].read(windows, rows, group * 64 + column);
    project(stream, a, d);
    u32 active[4][4];
    convolve(windows, channels, rows, group * 64 + column, past, d, active);
    const u64 piece = stream.take();
    begin_products();
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      multiply(sums, active[k], part_of(piece, 0, k));
      store_step(gang.steps[group * 4 + k][own_thread()], active[k]);
    }
    end_products();
    await_products();
    stream.leave<1>();
  }
#pragma unroll
  for (int i = 0; i < 24; ++i) low[i / 4][i % 4] = pack(sums[i * 2], sums[i * 2 + 1]);
  const int row = own_thread() / 32 * 16 + own_thread() % 32 / 4;
#pragma unroll
  for (int i = 0; i < 8; ++i) gang.b[i / 4 * 8 + column + i % 2][row + i % 4 / 2 * 8] = sums[48 + i];
  __syncwarp();
}

// The recurrence of a group.
DEVICE void recur_group(
    const Arguments& args, Stream& stream, Gang& gang, const float4* kept, const Rows& rows,
    int layer, int group, int column, const u32 (&low)[6][4]) {
  const int first = group * 64 + column;
  const int row = own_thread() / 32 * 16 + own_thread() % 32 / 4;
  const float* channels = args.channels + layer * (LINES * DI) + 5 * DI + first;
  float4* place[2];
  float4 h[4][2][2];
  float2 b[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float* state = entry(args, 3 + 2 * layer) + rows.slot[r] * (2 * DI) + 2 * first;
    place[r] = reinterpret_cast<float4*>(state);
    b[r] = make_float2(gang.b[group][row + 8 * r] + 1.0f, gang.b[GROUPS + group][row + 8 * r]);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      h[j / 2][j % 2][r] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (rows.live[r]) h[j / 2][j % 2][r] = __ldcg(place[r] + j * 4);
    }
  }
  uint4 gates[4];
#pragma unroll
  for (int k = 0; k < 4; ++k)
    gates[k] = *reinterpret_cast<const uint4*>(kept + (32 + group * 4 + k) * 128 + own_thread());
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
    u32 active[4];
    load_step(gang.steps[group * 4 + k][own_thread()], active);
    await_products();
    recur_step(channels + k * 16, rows, alpha, omega, step, active, b, h[k], &y[k * 8]);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (rows.live[i % 2]) __stcg(place[i % 2] + (k * 2 + i / 2) * 4, h[k][i / 2][i % 2]);
  }
  stream.leave<1>();
  finish_group(args, gang, channels, group, y, gates);
}

// Output projection and feed-forward layer.
DEVICE void mix(const Arguments& args, Stream& stream, Gang& gang, float (&x)[2][64]) {
#pragma unroll 1
  for (int group = 0; group < GROUPS; ++group) {
    u32 a[4][4];
#pragma unroll
    for (int k = 0; k < 4; ++k) load_step(gang.steps[group * 4 + k][own_thread()], a[k]);
    add(stream, x, a);
  }
  keep_normed(args, gang, x);
#pragma unroll 1
  for (int block = 0; block < HIDDEN / 64; ++block) {
    u32 mixed[4][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float d[32];
      project_kept(stream, gang, d);
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
    const Arguments& args, Stream& stream, Gang& gang, float4* kept, const Rows& rows, int layer,
    int column, float (&x)[2][64]) {
  {
    u32 a[16][4], low[6][4];
    float scale[2];
    norm(args, x, scale);
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const float* v = &x[i / 16][i % 16 * 4];
      kept[i * 128 + own_thread()] = make_float4(v[0], v[1], v[2], v[3]);
      if (i < 16) normed(x, scale, i, a[i]);
    }
    filter(args, stream, gang, kept, rows, layer, column, a, low);
#pragma unroll 1
    for (int group = 0; group < GROUPS; ++group) {
      ask_ahead(args, rows, layer, GROUPS + group + AHEAD);
      recur_group(args, stream, gang, kept, rows, layer, group, column, low);
    }
  }
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const float4 v = kept[i * 128 + own_thread()];
    float* to = &x[i / 16][i % 16 * 4];
    to[0] = v.x;
    to[1] = v.y;
    to[2] = v.z;
    to[3] = v.w;
  }
  mix(args, stream, gang, x);
}

DEVICE void head(
    const Arguments& args, Stream& stream, Gang& gang, u32* hidden, const float (&x)[2][64]) {
  keep_normed(args, gang, x);
#pragma unroll 1
  for (int block = 0; block < HEAD / 64; ++block) {
    float d[32];
    project_kept(stream, gang, d);
#pragma unroll
    for (int i = 0; i < 16; ++i)
      hidden[i % 2 * (4 * HEAD) + block * 32 + i / 2 * 4] = pack(silu(d[i * 2]), silu(d[i * 2 + 1]));
  }
}

KERNEL(128 * GANGS, 2 / GANGS) layers_kernel(const Arguments args) {
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const int number = threadIdx.x / 128, column = own_thread() % 4 * 2;
  const int own = own_thread() / 32 * 16 + own_thread() % 32 / 4;
  if (threadIdx.x == 0)
    for (int i = 0; i < STAGES; ++i) {
      prepare(&shared.full[i], 1);
      prepare(&shared.left[i], GANGS);
    }
  barriers_prepared();
  const int tiles = (args.rows + 64 * GANGS - 1) / (64 * GANGS);
  const u32 turns = (tiles - blockIdx.x + gridDim.x - 1) / gridDim.x;
  Stream stream(shared, args.pieces, turns * PIECES);
  for (int i = 0; i < STAGES; ++i) stream.ask();
  float4* kept = args.kept + (u64)(blockIdx.x * GANGS + number) * (KEPT * 128);
#pragma unroll 1
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int first = (tile * GANGS + number) * 64;
    const Rows rows = rows_of(args, first);
    for (int i = 0; i < AHEAD; ++i) ask_ahead(args, rows, 0, i);
    float x[2][64];
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      const float* place = args.x + (u64)(first + own + i % 2 * 8) * DM + i / 2 * 8 + column;
      const float2 pair = *reinterpret_cast<const float2*>(place);
      x[i / 32][i % 32 * 2] = pair.x;
      x[i / 32][i % 32 * 2 + 1] = pair.y;
    }
#pragma unroll 1
    for (int i = 0; i < LAYERS; ++i) layer(args, stream, shared.gangs[number], kept, rows, i, column, x);
    u32* hidden = args.hidden + (u64)(first + own) * (HEAD / 2) + column / 2;
    head(args, stream, shared.gangs[number], hidden, x);
  }
}
