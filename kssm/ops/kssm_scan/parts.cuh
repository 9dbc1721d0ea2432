// What walk.cu and tile.cu share: their arguments, words of memory, a token's arithmetic.
//
// Given by the compiler's command line, beside what each of them says:
//   D, GROUPS   channels, and groups of them that share b; a group is a multiple of 64 wide
//   HALF        1: inputs are fp16, 0: bf16
//   FACTOR      1: there is a factor of the step for every token
//   KEEP        0, or the state before every KEEP tokens is kept for the backward pass

#define LOG2E 1.4426950408889634f
#define HALF_LN2 0.34657359027997264f
#define LARGEST_STEP (5e9f / HALF_LN2)

#define KEPT (KEEP ? KEEP : 1)


typedef unsigned int u32;
typedef unsigned short u16;

struct alignas(16) Quad { u32 a, b, c, d; };
struct alignas(8) Pair { float re, im; };
struct Channel { float alpha_bias, shift, scale, dt_bias, c_re, c_im; };
struct Token { float alpha, omega, dt, x, factor; };
struct Gate { float P, Q, drive; };

struct Arguments {
  const u16* streams[4];                                // alpha, omega, dt, x [rows, tokens, D]
  const u16* b[2];                                      // [rows, tokens, GROUPS]
  const float* parameters[6];                           // [D], in the order of ScanParameters
  const float* initial;                                 // [rows, D, 2] or none
  const float* factor;                                  // [rows, tokens]
  const long long *lengths, *offsets, *owner, *first;   // as in kernel_common.find_row, or none
  Quad* maps;                                           // the board: [units, D], none if EVERY is 1
  Quad* states;                                         // the board: [units, D / 2]
  int* counter;                                         // -1 before the launch
  u32* y;                                               // [rows, tokens, D / 2]
  float* kept;                                          // [places, 2, D]
  float* last;                                          // [rows, D, 2]
  int spacing[6];                                       // elements from token to token
  int tokens, chunks, rows;
};

#ifndef EMULATED
#define DEVICE static __device__ __forceinline__
#define KERNEL(threads, resident) extern "C" __global__ void __launch_bounds__(threads, resident)
#define CONSTANT const __grid_constant__
extern __shared__ __align__(16) unsigned char memory[];

DEVICE float from_bits(u32 x) { return __uint_as_float(x); }
DEVICE u32 to_bits(float x) { return __float_as_uint(x); }

DEVICE float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The smaller one; not a number if one is not.
DEVICE float least(float x, float y) {
  float z;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}

DEVICE u32 pack_half(float low, float high) {
  u32 word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

DEVICE u32 pack_bf16(float low, float high) {
  u32 word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

DEVICE Pair unpack_half(u32 word) {
  Pair found;
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }"
      : "=f"(found.re), "=f"(found.im)
      : "r"(word));
  return found;
}

// 16 bytes into shared memory, or zeros.
DEVICE void copy_async(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(
                   (u32)__cvta_generic_to_shared(to)),
               "l"(from), "r"(there ? 16 : 0)
               : "memory");
}

DEVICE void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all but the last `Left` groups of copies have come.
template <int Left>
DEVICE void wait_for_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}
#endif

DEVICE float low(u32 word) { return HALF ? unpack_half(word).re : from_bits(word << 16); }
DEVICE float high(u32 word) { return HALF ? unpack_half(word).im : from_bits(word & 0xffff0000u); }
DEVICE u32 pack(float a, float b) { return HALF ? pack_half(a, b) : pack_bf16(a, b); }

DEVICE Quad as_quad(Pair h, Pair k) {
  return {to_bits(h.re), to_bits(h.im), to_bits(k.re), to_bits(k.im)};
}

// log2(1 + 2^x), as in kernel_gates._softplus_base_2.
DEVICE float softplus_4(float x) {
  float e = exp2_fast(-fabsf(x));
  float fit = fmaf(0.0596509515f, e, -0.227116986f);
  fit = fmaf(fit, e, 0.441896142f);
  fit = fmaf(fit, e, -0.71698644f);
  fit = fmaf(fit, e, 1.44261312f);
  return fmaf(fit, e, fmaxf(x, 0.0f));
}

DEVICE float softplus_5(float x) {
  float e = exp2_fast(-fabsf(x));
  float fit = fmaf(-0.0344356914f, e, 0.146031901f);
  fit = fmaf(fit, e, -0.303034825f);
  fit = fmaf(fit, e, 0.469173296f);
  fit = fmaf(fit, e, -0.720426f);
  fit = fmaf(fit, e, 1.44268291f);
  return fmaf(fit, e, fmaxf(x, 0.0f));
}

// Biases in units of ln 2; with the step in those units, too, scale and shift give tau w.
DEVICE Channel load_channel(const Arguments& g, int c) {
  float scale = g.parameters[2][c] * (0.5f * HALF_LN2);
  return {g.parameters[0][c] * LOG2E, g.parameters[1][c] * scale, scale,
          g.parameters[3][c] * LOG2E, g.parameters[4][c],         g.parameters[5][c]};
}

// P - i Q = 2 / (1 + z) and the input, as in kernel_gates' fast form.
DEVICE Gate gate_of(Token t, Channel c) {
  float a = softplus_4(fmaf(t.alpha, LOG2E, c.alpha_bias));
  float step = softplus_5(fmaf(t.dt, LOG2E, c.dt_bias));
  if (FACTOR) step *= t.factor;
  step = least(step, LARGEST_STEP);
  float p = fmaf(step * (HALF_LN2 * HALF_LN2), a, 0.5f);
  float q = step * fmaf(t.omega, c.scale, c.shift);
  float inverse = reciprocal(fmaf(p, p, q * q));
  return {p * inverse, q * inverse, step * t.x};
}

// The state after a token. b comes multiplied by HALF_LN2, for the step is in units of it.
DEVICE Pair evolve(Pair h, Gate gate, Pair b) {
  float v_re = fmaf(gate.drive, b.re, h.re), v_im = fmaf(gate.drive, b.im, h.im);
  return {fmaf(gate.P, v_re, fmaf(gate.Q, v_im, -h.re)),
          fmaf(gate.P, v_im, -fmaf(gate.Q, v_re, h.im))};
}

// The tokens of a word's first and second channel; words are alpha, omega, dt, x.
DEVICE Token first_of(Quad q, float factor) { return {low(q.a), low(q.b), low(q.c), low(q.d), factor}; }
DEVICE Token second_of(Quad q, float factor) {
  return {high(q.a), high(q.b), high(q.c), high(q.d), factor};
}

DEVICE float seen(Channel c, Pair h) { return fmaf(c.c_re, h.re, c.c_im * h.im); }

// b of a token, for ``evolve``.
DEVICE Pair read_b(const Arguments& g, long long token, int group) {
  return {low(g.b[0][token * g.spacing[4] + group]) * HALF_LN2,
          low(g.b[1][token * g.spacing[5] + group]) * HALF_LN2};
}

// The state of two channels before a row.
DEVICE void read_initial(const Arguments& g, long long row, int channel, Pair& h0, Pair& h1) {
  h0 = h1 = {0.0f, 0.0f};
  if (!g.initial) return;
  const float* from = g.initial + (row * D + channel) * 2;
  h0 = {from[0], from[1]};
  h1 = {from[2], from[3]};
}

// Where a row's kept states begin: one before every KEEP tokens.
DEVICE float* kept_of(const Arguments& g, long long row, long long first_token, int start) {
  long long place = g.offsets ? first_token / KEPT + row : row * ((g.tokens + KEPT - 1) / KEPT);
  return g.kept + (place + start / KEPT) * (2 * D);
}

// A row for the real parts, and one for the imaginary ones.
DEVICE void keep_states(float* to, Pair h0, Pair h1) {
  *(Pair*)to = {h0.re, h1.re};
  *(Pair*)(to + D) = {h0.im, h1.im};
}
