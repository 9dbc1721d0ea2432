// Maps of states, and the board in global memory on which programs tell their successors theirs.

#define EMPTY 0xffffffffu
#define EVERYONE 0xffffffffu

struct alignas(16) Map { float a_re, a_im, s_re, s_im; };  // state -> a state + s

DEVICE Pair apply(Map m, Pair h) {
  return {fmaf(m.a_re, h.re, fmaf(-m.a_im, h.im, m.s_re)),
          fmaf(m.a_re, h.im, fmaf(m.a_im, h.re, m.s_im))};
}

// One map after another.
DEVICE Map compose(Map first, Map second) {
  Pair s = apply(second, {first.s_re, first.s_im});
  return {second.a_re * first.a_re - second.a_im * first.a_im,
          second.a_re * first.a_im + second.a_im * first.a_re, s.re, s.im};
}

// A map, one token longer.
DEVICE Map advance(Map m, Gate gate, Pair b) {
  Pair s = evolve({m.s_re, m.s_im}, gate, b);
  return {fmaf(gate.P, m.a_re, fmaf(gate.Q, m.a_im, -m.a_re)),
          fmaf(gate.P, m.a_im, -fmaf(gate.Q, m.a_re, m.a_im)), s.re, s.im};
}

DEVICE Quad as_quad(Map m) {
  return {to_bits(m.a_re), to_bits(m.a_im), to_bits(m.s_re), to_bits(m.s_im)};
}

DEVICE Map as_map(Quad q) {
  return {from_bits(q.a), from_bits(q.b), from_bits(q.c), from_bits(q.d)};
}

DEVICE bool written(Quad q) {
  return q.a != EMPTY && q.b != EMPTY && q.c != EMPTY && q.d != EMPTY;
}

#ifndef EMULATED
DEVICE void publish(Quad* to, Quad v) {
  asm volatile("st.relaxed.gpu.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.a),
               "r"(v.b), "r"(v.c), "r"(v.d)
               : "memory");
}

DEVICE Quad look(const Quad* from) {
  Quad v;
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.a), "=r"(v.b), "=r"(v.c), "=r"(v.d)
               : "l"(from)
               : "memory");
  return v;
}
#endif
