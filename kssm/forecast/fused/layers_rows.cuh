// What layers.cu does with rows' own memory: windows and states, in place.

constexpr int AHEAD = 2;  // groups that are asked for ahead of need

struct Rows {
  long long slot[2];
  bool live[2];
  float factor[2];
  long long ahead;  // slot of the row for which this thread asks ahead of need, -1 for none
};

DEVICE Rows rows_of(const Arguments& args, int first) {
  Rows rows;
  const int own = first + own_thread() / 32 * 16 + own_thread() % 32 / 4;
  const int ahead = first + own_thread();
  rows.ahead = own_thread() < 64 && ahead < args.rows ? args.slots[ahead] : -1;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = own + 8 * r;
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

// Windows of a layer's groups, then its states, then the next layer's: into the L2 cache.
DEVICE void ask_ahead(const Arguments& args, const Rows& rows, int layer, int chunk) {
  layer += chunk / (2 * GROUPS);
  chunk %= 2 * GROUPS;
  if (layer >= LAYERS || rows.ahead < 0) return;
  if (chunk < GROUPS) {
    const float* window = entry(args, 2 + 2 * layer) + rows.ahead * (3 * DI) + chunk * 64;
#pragma unroll
    for (int tap = 0; tap < 3; ++tap) ask_for(window + tap * DI, 256);
  } else {
    const float* state = entry(args, 3 + 2 * layer) + rows.ahead * (2 * DI);
    ask_for(state + (chunk - GROUPS) * 128, 512);
  }
}

// Three tokens of sixteen channels' windows.
struct Past {
  float2 tokens[2][2][3];  // [j, row, tap]

  __device__ __forceinline__ void read(const float* windows, const Rows& rows, int first) {
#pragma unroll
    for (int i = 0; i < 12; ++i) {
      const int j = i / 6, r = i / 3 % 2, tap = i % 3;
      const float* place = windows + rows.slot[r] * (3 * DI) + tap * DI + first + j * 8;
      tokens[j][r][tap] = make_float2(0.0f, 0.0f);
      if (rows.live[r]) tokens[j][r][tap] = __ldcg(reinterpret_cast<const float2*>(place));
    }
  }
};

DEVICE float2 choose(bool first, bool second, float2 yes, float2 no) {
  return make_float2(first ? yes.x : no.x, second ? yes.y : no.y);
}

// The window moves on to include the token; one that is not finite is not remembered.
DEVICE void move_window(float* window, const float2 (&past)[3], float2 token) {
  const bool x = is_finite(token.x), y = is_finite(token.y);
  float2* place = reinterpret_cast<float2*>(window);
  __stcg(place, choose(x, y, past[1], past[0]));
  __stcg(place + DI / 2, choose(x, y, past[2], past[1]));
  __stcg(place + DI, choose(x, y, token, past[2]));
}

// The convolution of a group: its tokens d become active. ``first`` is this thread's channel;
// each quarter of the windows is read before the one in front of it is used.
DEVICE void convolve(
    float* windows, const float* channels, const Rows& rows, int first, Past (&past)[4],
    const float (&d)[32], u32 (&active)[4][4]) {
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    if (j % 2 == 0 && j < 6) past[j / 2 + 1].read(windows, rows, first + j * 8 + 16);
    float2 taps[5];
#pragma unroll
    for (int i = 0; i < 5; ++i) taps[i] = constants(channels + i * DI + first + j * 8);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float2 token = make_float2(d[j * 4 + r * 2], d[j * 4 + r * 2 + 1]);
      const float2(&before)[3] = past[j / 2].tokens[j % 2][r];
      float2 sum = make_float2(token.x * taps[3].x + taps[4].x, token.y * taps[3].y + taps[4].y);
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) {
        sum.x += before[tap].x * taps[tap].x;
        sum.y += before[tap].y * taps[tap].y;
      }
      if (rows.live[r])
        move_window(windows + rows.slot[r] * (3 * DI) + first + j * 8, before, token);
      active[j / 2][j % 2 * 2 + r] = pack(silu(sum.x), silu(sum.y));
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
  return fit * e + (x <= 0.0f ? 0.0f : x);
}

// One channel's gates, state and read-out; ``c`` are six lines of the table. A state that is not
// finite is not kept.
DEVICE float recur(
    float alpha, float omega, float step, float factor, float active, float2 b,
    const float (&c)[6], float& h_re, float& h_im) {
  const float a = softplus(alpha + c[0]), w = omega * c[2] + c[1];
  const float width = softplus(step + c[3]) * (0.5f * factor);
  const float tau = width > 5e9f ? 5e9f : width;
  const float ta = tau * a, q = tau * w, p = 1.0f + ta;
  const float s = ta * p + q * q, i2 = 2.0f * reciprocal(s + p), drive = tau * active;
  const float re = h_re + i2 * (drive * (p * b.x + q * b.y) - s * h_re + q * h_im);
  const float im = h_im + i2 * (drive * (p * b.y - q * b.x) - s * h_im - q * h_re);
  const bool good = is_finite(re) && is_finite(im);
  h_re = good ? re : h_re;
  h_im = good ? im : h_im;
  return c[4] * re + c[5] * im;
}

// Sixteen channels: both rows' states h move on, y becomes their read-out.
DEVICE void recur_step(
    const float* channels, const Rows& rows, const float (&alpha)[8], const float (&omega)[8],
    const float (&step)[8], const u32 (&active)[4], const float2 (&b)[2], float4 (&h)[2][2],
    float* y) {
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    float c[2][6];
#pragma unroll
    for (int i = 0; i < 6; ++i) {
      const float2 both = constants(channels + i * DI + j * 8);
      c[0][i] = both.x;
      c[1][i] = both.y;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float2 x = unpack(active[j * 2 + r]);
      const int i = j * 4 + r * 2;
      float4& s = h[j][r];
      y[i] = recur(alpha[i], omega[i], step[i], rows.factor[r], x.x, b[r], c[0], s.x, s.y);
      y[i + 1] =
          recur(alpha[i + 1], omega[i + 1], step[i + 1], rows.factor[r], x.y, b[r], c[1], s.z, s.w);
    }
  }
}

// A group's norm, skip and gate: what the output projection takes, in the place of its tokens.
DEVICE void finish_group(
    const Arguments& args, Gang& gang, const float* channels, int group, const float (&y)[32],
    const uint4 (&gates)[4]) {
  float scale[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < 32; ++i) scale[i / 2 % 2] += y[i] * y[i];
#pragma unroll
  for (int r = 0; r < 2; ++r)
    scale[r] = rsqrtf(sum_of_row(scale[r]) * (1.0f / 64) + args.group_eps);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    u32 active[4], gate[4];
    load_step(gang.steps[group * 4 + k][own_thread()], active);
    load_step(gates[k], gate);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* line = channels + 6 * DI + (k * 2 + i / 2) * 8;
      const float2 skip = constants(line), weight = constants(line + DI);
      const float2 x = unpack(active[i]), open = unpack(gate[i]);
      const float* read = &y[k * 8 + i * 2];
      active[i] = pack(
          (read[0] * scale[i % 2] * weight.x + skip.x * x.x) * open.x,
          (read[1] * scale[i % 2] * weight.y + skip.y * x.y) * open.y);
    }
    store_step(gang.steps[group * 4 + k][own_thread()], active);
  }
}
