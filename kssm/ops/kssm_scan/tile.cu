// The element-wise scan in one pass over 16-bit inputs, where rows are few (CUDA; see README.md).
//
// A program of WARPS warps takes a tile: 64 channels, WARPS runs of TOKENS consecutive tokens. Each
// warp copies its run into shared memory, walks it from a zero state, and leaves there for every
// token the read-out and the product of lambda so far, in the place of the inputs. Every EVERY tiles
// of a row the state is put on a board in global memory, by the others the map of what they do to it;
// from these a tile knows the state before it. Then each read-out gets what that state adds.
//
// Every word of the board says by itself whether it was written: before the launch they are EMPTY,
// a NaN that arithmetic never makes. So there are neither flags nor fences. Programs take turns from
// a counter: whoever is waited for has started, and waits for earlier turns only.
//
// Given by the compiler's command line, beside what parts.cuh says:
//   WARPS, TOKENS    the tile; TOKENS is a multiple of UNROLL
//   UNROLL           tokens in flight in a warp; a multiple of KEEP
//   RESIDENT         programs a multiprocessor should hold
//   EVERY            tiles from one state on the board to the next

#include "parts.cuh"
#include "board.cuh"

#define BLOCKS (D / 64)
#define LINE 128  // words of a token in shared memory: 4 streams of 32 lanes
#define WINDOW 4  // maps that are asked for at once

// Where a program's tile lies. Tokens and lengths are counted in the row.
struct Place {
  long long row, first_token, unit;
  int length, chunk, chunks, block;
};

DEVICE Place find(const Arguments& g, int turn) {
  Place p;
  p.block = turn % BLOCKS;
  int order = turn / BLOCKS;
  if (g.offsets) {
    p.unit = order;
    p.row = g.owner[order];
    p.first_token = g.offsets[p.row];
    p.length = (int)(g.offsets[p.row + 1] - p.first_token);
    p.chunk = (int)(order - g.first[p.row]);
    p.chunks = (int)(g.first[p.row + 1] - g.first[p.row]);
  } else {
    p.row = order % g.rows;
    p.chunk = order / g.rows;
    p.chunks = g.chunks;
    p.unit = p.row * g.chunks + p.chunk;
    p.first_token = p.row * g.tokens;
    p.length = g.tokens;
    if (g.lengths && g.lengths[p.row] < p.length) p.length = (int)g.lengths[p.row];
  }
  return p;
}

// A warp's run of tokens, asked for: [TOKENS, 4, 32] words, zeros from `valid` on.
DEVICE void ask_for_run(const Arguments& g, u32* run, long long token, int valid, int channel) {
  int lane = threadIdx.x % 32;
#pragma unroll
  for (int s = 0; s < 4; s++) {
    const u16* from = g.streams[s] + (token + lane / 8) * g.spacing[s] + channel + lane % 8 * 8;
    u32* to = run + lane / 8 * LINE + s * 32 + lane % 8 * 4;
#pragma unroll
    for (int j = 0; j < TOKENS; j += 4) {
      copy_async(to + j * LINE, from, j + lane / 8 < valid);
      from += 4ll * g.spacing[s];
    }
  }
}

// b and the step's factors of a warp's run.
DEVICE void read_shared(const Arguments& g, Pair* b, float* factor, long long token, int valid,
                        int group) {
  for (int j = threadIdx.x % 32; j < TOKENS; j += 32) {
    Pair found = {0.0f, 0.0f};
    if (j < valid) found = read_b(g, token + j, group);
    if (FACTOR) {
      factor[j] = j < valid ? g.factor[token + j] : 0.0f;
      if (factor[j] == 0.0f) found = {0.0f, 0.0f};
    }
    b[j] = found;
  }
}

// Tokens that leave the state as it is, made to do so: a step of softplus(-inf), and no input.
DEVICE void blank(u32* run, const float* factor, int valid) {
  u32* own = run + threadIdx.x % 32;
  for (int j = FACTOR ? 0 : max(valid, 0); j < TOKENS; j++) {
    if (FACTOR && j < valid && factor[j] != 0.0f) continue;
    own[j * LINE] = own[j * LINE + 32] = own[j * LINE + 96] = 0;
    own[j * LINE + 64] = HALF ? 0xfc00fc00u : 0xff80ff80u;
  }
}

// A run from a zero state: its map for two channels. Leaves a Quad a lane for every token, the
// read-outs and the products of lambda (as fp16), and in `local` the states before every KEEP.
DEVICE void walk(u32* run, const Pair* b, const float* factor, Quad* local, Channel c0, Channel c1,
                 Map& m0, Map& m1) {
  int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int j = 0; j < TOKENS; j += UNROLL) {
    Quad in[UNROLL], out[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      const u32* at = run + (j + u) * LINE + lane;
      in[u] = {at[0], at[32], at[64], at[96]};
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
      if (KEEP && u % KEPT == 0)
        local[(j + u) / KEPT * 32 + lane] =
            as_quad({m0.s_re, m0.s_im}, {m1.s_re, m1.s_im});
      float f = FACTOR ? factor[j + u] : 1.0f;
      m0 = advance(m0, gate_of(first_of(in[u], f), c0), b[j + u]);
      m1 = advance(m1, gate_of(second_of(in[u], f), c1), b[j + u]);
      out[u] = {to_bits(seen(c0, {m0.s_re, m0.s_im})), to_bits(seen(c1, {m1.s_re, m1.s_im})),
                pack_half(m0.a_re, m0.a_im), pack_half(m1.a_re, m1.a_im)};
    }
    __syncwarp();
#pragma unroll
    for (int u = 0; u < UNROLL; u++) ((Quad*)run)[(j + u) * 32 + lane] = out[u];
  }
}

// What the tiles from the last one with a known state on did, for two channels of tile `entry`.
DEVICE void gather(const Arguments& g, long long entry, int count, Map& m0, Map& m1) {
  for (int done = 0; done < count;) {
    Quad first[WINDOW], second[WINDOW];
#pragma unroll
    for (int k = 0; k < WINDOW; k++) {
      long long place = entry - (long long)max(count - done - k, 1) * D;
      first[k] = look(g.maps + place);
      second[k] = look(g.maps + place + 1);
    }
    bool all = true;
#pragma unroll
    for (int k = 0; k < WINDOW; k++) {
      if (!all || done == count) continue;
      all = __all_sync(EVERYONE, written(first[k]) && written(second[k]));
      if (all) {
        m0 = compose(m0, as_map(first[k]));
        m1 = compose(m1, as_map(second[k]));
        done++;
      }
    }
  }
}

// The states before the tile for everyone in `incoming`, by the warp that has the tile's whole map.
// What is added to what does not depend on timing, so that results are the same to the bit.
DEVICE void connect(const Arguments& g, Place p, int channel, Map whole0, Map whole1, Quad before,
                    Pair* incoming) {
  int lane = threadIdx.x % 32, since = p.chunk % EVERY;
  long long entry = p.unit * D + channel;
  bool last = p.chunk + 1 == p.chunks;
  if (since + 1 < EVERY && !last) {
    publish(g.maps + entry, as_quad(whole0));
    publish(g.maps + entry + 1, as_quad(whole1));
  }
  Map m0 = {1, 0, 0, 0}, m1 = {1, 0, 0, 0};
  if (EVERY > 1) gather(g, entry, since, m0, m1);
  Pair h0, h1;
  read_initial(g, p.row, channel, h0, h1);
  if (p.chunk >= EVERY) {
    while (!__all_sync(EVERYONE, written(before)))
      before = look(g.states + (entry - (since + 1ll) * D) / 2);
    h0 = {from_bits(before.a), from_bits(before.b)};
    h1 = {from_bits(before.c), from_bits(before.d)};
  }
  if (since > 0) {
    h0 = apply(m0, h0);
    h1 = apply(m1, h1);
  }
  Quad after = as_quad(apply(whole0, h0), apply(whole1, h1));
  if (since + 1 == EVERY && !last) publish(g.states + entry / 2, after);
  if (last) *(Quad*)(g.last + (p.row * D + channel) * 2) = after;
  incoming[2 * lane] = h0;
  incoming[2 * lane + 1] = h1;
}

// conj(c) h: the real part of its product with a product of lambda is what y gets from the state h.
DEVICE Pair handed_on(Channel c, Pair h) {
  return {seen(c, h), fmaf(c.c_re, h.im, -c.c_im * h.re)};
}

// Write y and the kept states of a run, given the states before it.
DEVICE void finish(const Arguments& g, const Quad* run, const Quad* local, Place p, int start,
                   int channel, Channel c0, Channel c1, Pair h0, Pair h1) {
  int lane = threadIdx.x % 32;
  Pair g0 = handed_on(c0, h0), g1 = handed_on(c1, h1), a0 = {1, 0}, a1 = {1, 0};
  u32* y = g.y + (p.first_token + start) * (D / 2) + channel / 2;
  float* kept = KEEP ? kept_of(g, p.row, p.first_token, start) + channel : 0;
  int count = min(p.length - start, TOKENS);
#pragma unroll 4
  for (int j = 0; j < count; j++) {
    if (KEEP && j % KEPT == 0) {
      Map m0 = as_map(local[j / KEPT * 32 + lane]);
      keep_states(kept, apply({a0.re, a0.im, m0.a_re, m0.a_im}, h0),
                  apply({a1.re, a1.im, m0.s_re, m0.s_im}, h1));
      kept += 2 * D;
    }
    Quad in = run[j * 32 + lane];
    a0 = unpack_half(in.c);
    a1 = unpack_half(in.d);
    y[j * (D / 2)] = pack(fmaf(a0.re, g0.re, fmaf(-a0.im, g0.im, from_bits(in.a))),
                          fmaf(a1.re, g1.re, fmaf(-a1.im, g1.im, from_bits(in.b))));
  }
}

KERNEL(WARPS * 32, RESIDENT) tile_kernel(CONSTANT Arguments g) {
  u32* runs = (u32*)memory;                                            // [WARPS, TOKENS, LINE]
  Quad* locals = (Quad*)(runs + WARPS * TOKENS * LINE);                // [WARPS, TOKENS / KEEP, 32]
  Map* maps = (Map*)(locals + (KEEP ? WARPS * TOKENS / KEPT * 32 : 0));  // [WARPS, 64]
  Pair* incoming = (Pair*)(maps + WARPS * 64);                         // [64]
  Pair* all_b = incoming + 64;                                         // [WARPS, TOKENS]
  float* factors = (float*)(all_b + WARPS * TOKENS);                   // [WARPS, TOKENS]
  int* turn = (int*)(factors + (FACTOR ? WARPS * TOKENS : 0));
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (threadIdx.x == 0) *turn = atomicAdd(g.counter, 1) + 1;
  __syncthreads();
  Place p = find(g, *turn);
  if (p.chunk >= p.chunks) return;  // packed rows have room for more tiles than they fill
  int channel = p.block * 64 + 2 * lane, start = (p.chunk * WARPS + warp) * TOKENS;
  int valid = p.length - start;
  u32* run = runs + warp * TOKENS * LINE;
  Quad* local = locals + (KEEP ? warp * TOKENS / KEPT * 32 : 0);
  Pair* b = all_b + warp * TOKENS;
  float* factor = factors + warp * TOKENS;
  ask_for_run(g, run, p.first_token + start, valid, p.block * 64);
  read_shared(g, b, factor, p.first_token + start, valid, p.block / (BLOCKS / GROUPS));
  Channel c0 = load_channel(g, channel), c1 = load_channel(g, channel + 1);
  end_group();
  wait_for_group<0>();
  __syncwarp();
  blank(run, factor, valid);
  Map m0 = {1, 0, 0, 0}, m1 = {1, 0, 0, 0};
  walk(run, b, factor, local, c0, c1, m0, m1);
  maps[warp * 64 + 2 * lane] = m0;
  maps[warp * 64 + 2 * lane + 1] = m1;
  Quad before = {EMPTY, EMPTY, EMPTY, EMPTY};
  if (warp == WARPS - 1 && p.chunk >= EVERY)
    before = look(g.states + (p.unit - p.chunk % EVERY - 1) * (D / 2) + channel / 2);
  __syncthreads();
  Map before0 = {1, 0, 0, 0}, before1 = {1, 0, 0, 0};
#pragma unroll
  for (int k = 0; k < WARPS - 1; k++)
    if (k < warp) {
      before0 = compose(before0, maps[k * 64 + 2 * lane]);
      before1 = compose(before1, maps[k * 64 + 2 * lane + 1]);
    }
  if (warp == WARPS - 1)
    connect(g, p, channel, compose(before0, m0), compose(before1, m1), before, incoming);
  __syncthreads();
  finish(g, (Quad*)run, local, p, start, channel, c0, c1, apply(before0, incoming[2 * lane]),
         apply(before1, incoming[2 * lane + 1]));
}
