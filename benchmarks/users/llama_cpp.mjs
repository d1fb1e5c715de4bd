// Next-token probabilities of a GGUF file, and its token ids of texts: node llama_cpp.mjs FILE WINDOWS OUT LINES IDS
//
// WINDOWS is a JSON list of N lists of T token ids; OUT receives N x T x vocabulary fp32 probabilities of the
// token after each. LINES is a JSON list of texts; their token ids go to IDS as JSON.

import fs from "node:fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const [file, windows, out, lines, ids] = process.argv.slice(2);
const read = (path) => JSON.parse(fs.readFileSync(path, "utf8"));

const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: file});
const given = read(windows);
const context = await model.createContext({contextSize: given[0].length});
const sequence = context.getSequence();
const handle = fs.openSync(out, "w");
for (const window of given) {
  await sequence.clearHistory();
  const found = await sequence.controlledEvaluate(
    window.map((token) => [token, {generateNext: {probabilities: true}}]),
  );
  for (const {next} of found) {
    const row = new Float32Array(next.probabilities.size);
    for (const [token, probability] of next.probabilities) row[token] = probability;
    fs.writeSync(handle, new Uint8Array(row.buffer));
  }
}
fs.closeSync(handle);
fs.writeFileSync(ids, JSON.stringify(read(lines).map((line) => [...model.tokenize(line)])));
process.exit(0); // its threads would keep it running
