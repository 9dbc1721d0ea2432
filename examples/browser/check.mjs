/** Forecast the values on standard input (a JSON array of samples) with MODEL.onnx, in Node. */

import { readFileSync } from "node:fs";

import { Forecaster } from "./forecaster.mjs";

const forecaster = await Forecaster.open(readFileSync(process.argv[2]));
const answers = [];
for (const value of JSON.parse(readFileSync(0, "utf8"))) {
  const { quantiles, tail } = await forecaster.step([value === null ? NaN : value]);
  answers.push({ quantiles: Array.from(quantiles), tail: tail[0] });
}
console.log(JSON.stringify(answers));
