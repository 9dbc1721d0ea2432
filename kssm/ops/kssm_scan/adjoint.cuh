// What walk_back.cu and back_maps.cu share: where gradients are, and how a row is cut.

struct Gradients {
  const u16* dy;                // [rows, tokens, D]
  const float* last;            // of the last states [rows, D, 2]
  u32* streams[4];              // [rows, tokens, D / 2]
  float* b[2];                  // [rows, tokens, BLOCKS]: partial sums
  float* parameters;            // [units, 6, D]: partial sums
  float* initial;               // [rows, D, 2]
  Quad* maps;                   // [units, D]: of the adjoint, when rows are cut
  int dy_spacing, chunk_len;    // of a chunk, a multiple of NARROW
};

struct Both {
  Arguments forward;
  Gradients to;
};

// Tokens of a chunk, counted in its row.
struct Span { int start, stop; };

DEVICE Span span_of(const Both& g, Row row) {
  int start = row.chunk * g.to.chunk_len;
  return {start, min(start + g.to.chunk_len, row.length)};
}
