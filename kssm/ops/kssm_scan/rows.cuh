// What walk.cu and walk_back.cu share: where a row lies, and its narrow inputs.

#define BLOCKS (D / 64)
#define NARROW 32  // tokens whose b a warp asks for at once

struct Row {
  long long number, first_token;
  int length;
};

DEVICE Row find(const Arguments& g, int number) {
  Row row = {number, (long long)number * g.tokens, g.tokens};
  if (g.offsets) {
    row.first_token = g.offsets[number];
    row.length = (int)(g.offsets[number + 1] - row.first_token);
  }
  if (g.lengths && g.lengths[number] < row.length) row.length = (int)g.lengths[number];
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
