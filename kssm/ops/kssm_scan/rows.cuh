// What the kernels that walk a row share: where it lies, and its narrow inputs.

#define BLOCKS (D / 64)
#define NARROW 32  // tokens whose b a warp asks for at once

struct Row {
  long long number, first_token;
  int length, chunk, chunks;
};

// The row of a unit of work, and which of its chunks the unit is. Packed rows are cut only where
// there is a list of the units' owners.
DEVICE Row find(const Arguments& g, int unit) {
  Row row;
  row.number = g.owner ? g.owner[unit] : unit / g.chunks;
  row.chunk = g.owner ? (int)(unit - g.first[row.number]) : unit % g.chunks;
  row.chunks = g.owner ? (int)(g.first[row.number + 1] - g.first[row.number]) : g.chunks;
  row.first_token = g.offsets ? g.offsets[row.number] : row.number * g.tokens;
  row.length = g.offsets ? (int)(g.offsets[row.number + 1] - row.first_token) : g.tokens;
  if (g.lengths && g.lengths[row.number] < row.length) row.length = (int)g.lengths[row.number];
  return row;
}

// b and the step's factor of one token.
struct Narrow {
  Pair b;
  float factor;
};

DEVICE Narrow read_narrow(const Arguments& g, long long token, bool there, int group) {
  Narrow found = {{0.0f, 0.0f}, 1.0f};
  if (there) found.b = read_b(g, token, group);
  if (FACTOR && there) {
    found.factor = g.factor[token];
    if (found.factor == 0.0f) found.b = {0.0f, 0.0f};  // it may be anything
  }
  return found;
}
