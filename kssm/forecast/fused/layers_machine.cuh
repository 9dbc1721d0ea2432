// What layers.cu asks of the machine: products of a warpgroup, copies in bulk, barriers.

typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef EMULATED
#define DEVICE static __device__ __forceinline__
#define KERNEL(threads, resident) extern "C" __global__ void __launch_bounds__(threads, resident)
extern __shared__ __align__(1024) unsigned char memory[];

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

// NaN stays.
DEVICE float least(float x, float y) {
  float z;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}

DEVICE float greatest(float x, float y) {
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}

DEVICE u32 pack(float low, float high) {
  u32 word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

DEVICE float2 unpack(u32 word) {
  float2 pair;
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }"
      : "=f"(pair.x), "=f"(pair.y) : "r"(word));
  return pair;
}

DEVICE u32 shared_address(const void* place) { return (u32)__cvta_generic_to_shared(place); }

DEVICE void prepare(u64* barrier, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count)
               : "memory");
}

DEVICE void barriers_prepared() {
  asm volatile("fence.mbarrier_init.release.cluster; fence.proxy.async;" ::: "memory");
  __syncthreads();
}

// Whether the barrier's turn of this parity is over.
DEVICE bool is_over(u64* barrier, u32 parity) {
  u32 over;
  asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared::cta.b64 p, [%1], %2;"
               "selp.u32 %0, 1, 0, p; }"
               : "=r"(over) : "r"(shared_address(barrier)), "r"(parity) : "memory");
  return over;
}

// 16 kB into shared memory; the barrier's turn ends when they are there.
DEVICE void copy_piece(void* to, const void* from, u64* barrier, bool wanted) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %3, 0;"
               "@p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%2], 16384;"
               "@p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
               " [%0], [%1], 16384, [%2]; }" ::"r"(shared_address(to)), "l"(from),
               "r"(shared_address(barrier)), "r"((u32)wanted) : "memory");
}

// States are used once a step: the cache need not keep them.
DEVICE u64 used_once() {
  u64 policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Without branches, so that the compiler may interleave what is around.
DEVICE void store_once(float4* to, float4 value, bool there) {
  asm volatile("{ .reg .pred p; setp.ne.b32 p, %5, 0;"
               "@p st.global.cs.v4.f32 [%0], {%1, %2, %3, %4}; }" ::"l"(to), "f"(value.x),
               "f"(value.y), "f"(value.z), "f"(value.w), "r"((u32)there) : "memory");
}

// Into shared memory, for this thread; nothing is read and zeros come unless ``there``.
DEVICE void copy_ahead(void* to, const float* from, bool there, u64 policy) {
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(
                   shared_address(to)), "l"(from), "r"(there ? 16 : 0), "l"(policy) : "memory");
}
DEVICE void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All but the last two groups of copies have come.
DEVICE void await_copies() { asm volatile("cp.async.wait_group 2;" ::: "memory"); }

// Rows of 128 bytes in shared memory, eight by eight, their sixteenths swizzled.
DEVICE u64 descriptor(const void* place) {
  return (u64)((shared_address(place) & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
DEVICE void await_products() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

#define SUMS_8(i)                                                                             \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define OPERANDS "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(weights)
#define NAMES_8 "%0,%1,%2,%3,%4,%5,%6,%7"
#define NAMES_32                                                                            \
  NAMES_8 ",%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27," \
          "%28,%29,%30,%31"
#define NAMES_56                                                                             \
  NAMES_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51," \
           "%52,%53,%54,%55"
#define NAMES_64 NAMES_56 ",%56,%57,%58,%59,%60,%61,%62,%63"
#define PRODUCT(columns, names, operands) \
  "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32.f16.f16 {" names "}, " operands ", 1, 1, 1, 0;"

// d [64, N] += a [64, 16] times N rows of 16 weights; N is twice the numbers of d.
DEVICE void multiply(float (&d)[8], const u32 (&a)[4], u64 weights) {
  asm volatile(PRODUCT("16", NAMES_8, "{%8,%9,%10,%11}, %12") : SUMS_8(0) : OPERANDS);
}
DEVICE void multiply(float (&d)[32], const u32 (&a)[4], u64 weights) {
  asm volatile(PRODUCT("64", NAMES_32, "{%32,%33,%34,%35}, %36")
               : SUMS_8(0), SUMS_8(8), SUMS_8(16), SUMS_8(24) : OPERANDS);
}
DEVICE void multiply(float (&d)[56], const u32 (&a)[4], u64 weights) {
  asm volatile(PRODUCT("112", NAMES_56, "{%56,%57,%58,%59}, %60")
               : SUMS_8(0), SUMS_8(8), SUMS_8(16), SUMS_8(24), SUMS_8(32), SUMS_8(40), SUMS_8(48)
               : OPERANDS);
}
DEVICE void multiply(float (&d)[64], const u32 (&a)[4], u64 weights) {
  asm volatile(PRODUCT("128", NAMES_64, "{%64,%65,%66,%67}, %68")
               : SUMS_8(0), SUMS_8(8), SUMS_8(16), SUMS_8(24), SUMS_8(32), SUMS_8(40), SUMS_8(48),
                 SUMS_8(56)
               : OPERANDS);
}
#endif
