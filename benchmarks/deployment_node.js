// Runs an ONNX file in Node.js: node deployment_node.js PACKAGE FILE
// A line of standard input names a file of 32-bit floats and its shape; the line that answers has output and milliseconds.
const fs = require("fs");
const readline = require("readline");

async function main() {
  const [, , location, path] = process.argv;
  const ort = require(location);
  if (ort.env.wasm) ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create(fs.readFileSync(path), { intraOpNumThreads: 1, interOpNumThreads: 1 });
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { file, shape } = JSON.parse(line);
    const bytes = fs.readFileSync(file);
    const values = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4).slice();
    const start = process.hrtime.bigint();
    const found = await session.run({ [session.inputNames[0]]: new ort.Tensor("float32", values, shape) });
    const ms = Number(process.hrtime.bigint() - start) / 1e6;
    const output = found[session.outputNames[0]];
    console.log(JSON.stringify({ output: Array.from(output.data), shape: output.dims, ms }));
  }
}

main();
