/** A forecaster whose step runs in the page (or in Node) through onnxruntime-web. */

import * as ort from "onnxruntime-web";

export class Forecaster {
  /** Open an exported model: its address, or its bytes. */
  static async open(model, { rows = 1 } = {}) {
    const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
    return new Forecaster(session, rows);
  }

  constructor(session, rows) {
    this.session = session;
    this.rows = rows;
    this.reset();
  }

  /** Forget everything: a fresh state is all zeros. */
  reset() {
    this.state = {};
    for (const { name, type, shape } of this.session.inputMetadata) {
      if (!name.startsWith("state_")) continue;
      const numbers = type === "float64" ? Float64Array : Float32Array;
      const size = [this.rows, shape[1]];
      this.state[name] = new ort.Tensor(type, new numbers(size[0] * size[1]), size);
    }
  }

  /**
   * Take one sample of every row (NaN = missing), `dt` sample intervals after the last.
   *
   * Returns the quantiles 0.1 ... 0.9 of the next samples as one flat array [rows, horizon, 9],
   * the horizon, and each row's tail probability (NaN = no score).
   */
  async step(values, dt = values.map(() => 1)) {
    const results = await this.session.run({
      values: new ort.Tensor("float64", Float64Array.from(values), [this.rows]),
      dt: new ort.Tensor("float64", Float64Array.from(dt), [this.rows]),
      ...this.state,
    });
    for (const name of Object.keys(this.state)) this.state[name] = results[`new_${name}`];
    const { quantiles, tail } = results;
    return { quantiles: quantiles.data, horizon: quantiles.dims[1], tail: tail.data };
  }
}
