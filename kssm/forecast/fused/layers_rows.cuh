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
      for (int i = 0; i < 12; ++i) {
        const int j = i / 6, r = i / 3 % 2, tap = i % 3;
        float2* place = reinterpret_cast<float2*>(&to[i / 2][threadIdx.x]) + i % 2;
        copy_ahead(place, windows[r] + tap * DI + asked * 16 + j * 8, live[r], policy);
      }
    } else if (asked < 8 * GROUPS) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* from = states[i % 2] + (asked - 4 * GROUPS) * 32 + i / 2 * 16;
        copy_ahead(reinterpret_cast<float4*>(&to[i][threadIdx.x]), from, live[i % 2], policy);
      }
    }
    end_copies();
    ++asked;
  }

  // [columns, row, tap] of the next chunk.
  __device__ __forceinline__ void take(float2 (&past)[2][2][3]) {
    await_copies();
#pragma unroll
    for (int i = 0; i < 12; i += 2) {
      const float4 two =
          *reinterpret_cast<const float4*>(&own[place * CHUNK + i / 2][threadIdx.x]);
      past[i / 6][i / 3 % 2][i % 3] = make_float2(two.x, two.y);
      past[(i + 1) / 6][(i + 1) / 3 % 2][(i + 1) % 3] = make_float2(two.z, two.w);
    }
    ask(place);
    place = place + 1 == PLACES ? 0 : place + 1;
  }

  // [columns, row] of the next chunk.
  __device__ __forceinline__ void take(float4 (&h)[2][2]) {
    await_copies();
#pragma unroll
    for (int i = 0; i < 4; ++i)
      h[i / 2][i % 2] = *reinterpret_cast<const float4*>(&own[place * CHUNK + i][threadIdx.x]);
    ask(place);
    place = place + 1 == PLACES ? 0 : place + 1;
  }
};

DEVICE float2 choose(bool first, bool second, float2 yes, float2 no) {
  return make_float2(first ? yes.x : no.x, second ? yes.y : no.y);
}

// The window moves on to include the token; one that is not finite is not remembered.
DEVICE void move_window(float* window, const float2 (&past)[3], float2 token, bool live) {
  const bool x = is_finite(token.x), y = is_finite(token.y);
  float2* place = reinterpret_cast<float2*>(window);
  store_once(place, choose(x, y, past[1], past[0]), live);
  store_once(place + DI / 2, choose(x, y, past[2], past[1]), live);
  store_once(place + DI, choose(x, y, token, past[2]), live);
}

// The convolution of a group: its tokens d become active. ``first`` is this thread's channel.
DEVICE void convolve(
    float* windows, const float* channels, const Rows& rows, int first, Chunks& chunks,
    const float (&d)[32], u32 (&active)[4][4]) {
#pragma unroll
  for (int quarter = 0; quarter < 4; ++quarter) {
    float2 past[2][2][3];
    chunks.take(past);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int j = quarter * 2 + i / 2, r = i % 2;
      const float* line = channels + first + j * 8;
      const float2 token = make_float2(d[j * 4 + r * 2], d[j * 4 + r * 2 + 1]);
      const float2 weight = constants(line + 3 * DI), bias = constants(line + 4 * DI);
      float2 sum = make_float2(token.x * weight.x + bias.x, token.y * weight.y + bias.y);
#pragma unroll
      for (int tap = 0; tap < 3; ++tap) {
        const float2 other = constants(line + tap * DI);
        sum.x += past[i / 2][r][tap].x * other.x;
        sum.y += past[i / 2][r][tap].y * other.y;
      }
      float* window = windows + rows.slot[r] * (3 * DI) + first + j * 8;
      move_window(window, past[i / 2][r], token, rows.live[r]);
      active[quarter][i] = pack(silu(sum.x), silu(sum.y));
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
  for (int i = 0; i < 16; ++i) {
    const float* line = channels + 6 * DI + i / 2 * 8;
    const float2 skip = constants(line), weight = constants(line + DI);
    const float2 x = unpack(active[i / 4][i % 4]), open = unpack(gate[i / 4][i % 4]);
    const float* read = &y[i * 2];
    active[i / 4][i % 4] = pack(
        (read[0] * scale[i % 2] * weight.x + skip.x * x.x) * open.x,
        (read[1] * scale[i % 2] * weight.y + skip.y * x.y) * open.y);
  }
}
