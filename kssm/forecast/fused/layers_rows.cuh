// What layers.cu does with rows' own memory: windows and states, in place.

struct Rows {
  long long slot[2];
  bool live[2];
  float factor[2];
};

DEVICE Rows rows_of(const Arguments& args, int first) {
  Rows rows;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = first + own_row() + 8 * r;
    const long long slot = row < args.rows ? args.slots[row] : -1;
    rows.live[r] = slot >= 0;
    rows.slot[r] = slot >= 0 ? slot : 0;
    rows.factor[r] = slot >= 0 ? (float)args.dt[row] : 1.0f;
  }
  return rows;
}

DEVICE float* entry(const Arguments& args, int place) {
  return reinterpret_cast<float*>(args.table[place]);
}

// A layer's windows, then its states, sixteen channels a chunk, on their way to the thread that
// takes them: PLACES chunks are under way or waiting.
struct Chunks {
  const float *windows[2], *states[2];  // of both rows, at the thread's first channel
  bool live[2];
  uint4 (*own)[128];
  u64 policy;
  int asked, place = 0;

  __device__ Chunks(const Arguments& args, const Rows& rows, Shared& shared, int layer, int column)
      : own(shared.own), policy(used_once()), asked(0) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      windows[r] = entry(args, 2 + 2 * layer) + rows.slot[r] * (3 * DI) + column;
      states[r] = entry(args, 3 + 2 * layer) + rows.slot[r] * (2 * DI) + 2 * column;
      live[r] = rows.live[r];
    }
  }

  __device__ __forceinline__ void ask(int at) {
    uint4(*to)[128] = own + at * CHUNK;
    if (asked < 4 * GROUPS) {
#pragma unroll
      for (int i = 0; i < 6; ++i) {
        const float* from = windows[i / 3] + i % 3 * DI + asked * 16;
        copy_ahead(&to[i][threadIdx.x], from, live[i / 3], policy);
      }
    } else if (asked < 8 * GROUPS) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* from = states[i % 2] + (asked - 4 * GROUPS) * 32 + i / 2 * 4;
        copy_ahead(&to[i][threadIdx.x], from, live[i % 2], policy);
      }
    }
    end_copies();
    ++asked;
  }

  // The next chunk: windows [row, tap] or states [pair of channels, row].
  template <int N>
  __device__ __forceinline__ void take(float4 (&chunk)[N]) {
    await_copies();
#pragma unroll
    for (int i = 0; i < N; ++i)
      chunk[i] = *reinterpret_cast<const float4*>(&own[place * CHUNK + i][threadIdx.x]);
    ask(place);
    place = place + 1 == PLACES ? 0 : place + 1;
  }
};

DEVICE float4 times(float4 a, float4 b, float4 sum) {
  return make_float4(a.x * b.x + sum.x, a.y * b.y + sum.y, a.z * b.z + sum.z, a.w * b.w + sum.w);
}

DEVICE float4 finite_or(float4 test, float4 yes, float4 no) {
  return make_float4(
      is_finite(test.x) ? yes.x : no.x, is_finite(test.y) ? yes.y : no.y,
      is_finite(test.z) ? yes.z : no.z, is_finite(test.w) ? yes.w : no.w);
}

// The convolution of a group: its tokens d become active. The windows move on to include them; a
// token that is not finite is not remembered. ``first`` is this thread's first channel.
DEVICE void convolve(
    float* windows, const float* channels, const Rows& rows, int first, Chunks& chunks,
    const float (&d)[32], u32 (&active)[4][4]) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    float4 taps[5], past[6];
#pragma unroll
    for (int i = 0; i < 5; ++i) taps[i] = constants(channels + i * DI + first + k * 16);
    chunks.take(past);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float* pairs = &d[k * 8 + r * 2];
      const float4 token = make_float4(pairs[0], pairs[1], pairs[4], pairs[5]);
      float4 sum = times(token, taps[3], taps[4]);
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) sum = times(past[r * 3 + tap], taps[tap], sum);
      float* window = windows + rows.slot[r] * (3 * DI) + first + k * 16;
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) {
        const float4 next = tap < 2 ? past[r * 3 + tap + 1] : token;
        float4* place = reinterpret_cast<float4*>(window + tap * DI);
        store_once(place, finite_or(token, next, past[r * 3 + tap]), rows.live[r]);
      }
      active[k][r] = pack(silu(sum.x), silu(sum.y));
      active[k][2 + r] = pack(silu(sum.z), silu(sum.w));
    }
  }
}

// log(1 + exp(x)) as in kssm_scan/kernel_common.py, relative error 6e-5. NaN stays.
DEVICE float softplus(float x) {
  const float e = exp2_fast(fabsf(x) * -1.4426950408889634f);
  float fit = 0.0413473051f;
  fit = fit * e - 0.157427236f;
  fit = fit * e + 0.306300969f;
  fit = fit * e - 0.496977822f;
  fit = fit * e + 0.99994328f;
  return fit * e + greatest(x, 0.0f);
}

// One channel's gates, state and read-out; ``c`` are six lines of the table. A state that is not
// finite is not kept.
DEVICE float recur(
    float alpha, float omega, float step, float factor, float active, float2 b,
    const float (&c)[6], float& h_re, float& h_im) {
  const float a = softplus(alpha + c[0]), w = omega * c[2] + c[1];
  const float tau = least(softplus(step + c[3]) * (0.5f * factor), 5e9f);
  const float ta = tau * a, q = tau * w, p = 1.0f + ta;
  const float s = ta * p + q * q, i2 = 2.0f * reciprocal(s + p), drive = tau * active;
  const float re = h_re + i2 * (drive * (p * b.x + q * b.y) - s * h_re + q * h_im);
  const float im = h_im + i2 * (drive * (p * b.y - q * b.x) - s * h_im - q * h_re);
  const bool good = is_finite(re) & is_finite(im);  // a branch would keep channels apart
  h_re = good ? re : h_re;
  h_im = good ? im : h_im;
  return c[4] * re + c[5] * im;
}

// Sixteen channels: both rows' states h move on, y becomes their read-out.
DEVICE void recur_step(
    const float* channels, const Rows& rows, const float (&alpha)[8], const float (&omega)[8],
    const float (&step)[8], const u32 (&active)[4], const float2 (&b)[2], float4 (&h)[4],
    float* y) {
  float c[4][6];
#pragma unroll
  for (int i = 0; i < 6; ++i) {
    const float4 four = constants(channels + i * DI);
    c[0][i] = four.x;
    c[1][i] = four.y;
    c[2][i] = four.z;
    c[3][i] = four.w;
  }
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    const int j = n / 2, r = n % 2, i = n * 2;
    const float2 x = unpack(active[n]);
    const float factor = rows.factor[r];
    float4& s = h[n];
    y[i] = recur(alpha[i], omega[i], step[i], factor, x.x, b[r], c[j * 2], s.x, s.y);
    y[i + 1] =
        recur(alpha[i + 1], omega[i + 1], step[i + 1], factor, x.y, b[r], c[j * 2 + 1], s.z, s.w);
  }
}

// A group's norm, skip and gate: active tokens become what the output projection takes.
DEVICE void finish_group(
    const Arguments& args, const float* channels, const float (&y)[32], const u32 (&gate)[4][4],
    u32 (&active)[4][4]) {
  float scale[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < 32; ++i) scale[i / 2 % 2] += y[i] * y[i];
#pragma unroll
  for (int r = 0; r < 2; ++r)
    scale[r] = rsqrtf(sum_of_row(scale[r]) * (1.0f / 64) + args.group_eps);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float* line = channels + 6 * DI + k * 16;
    const float4 skip = constants(line), weight = constants(line + DI);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const float* read = &y[k * 8 + n * 2];
      const float left = read[0] * scale[n % 2] * (n < 2 ? weight.x : weight.z);
      const float right = read[1] * scale[n % 2] * (n < 2 ? weight.y : weight.w);
      const float2 x = unpack(active[k][n]), open = unpack(gate[k][n]);
      active[k][n] = pack(
          (left + (n < 2 ? skip.x : skip.z) * x.x) * open.x,
          (right + (n < 2 ? skip.y : skip.w) * x.y) * open.y);
    }
  }
}
