// SPDX-License-Identifier: Apache-2.0
// node pyodide_program.mjs PYODIDE CHECKOUT PROGRAM: run a Python program under Pyodide with the checkout in reach.
import { readFileSync } from "node:fs";

const [pyodide, checkout, program] = process.argv.slice(2);
const { loadPyodide } = await import(pyodide);
const python = await loadPyodide();
python.mountNodeFS("/checkout", checkout);
await python.runPythonAsync(readFileSync(program, "utf8"));
process.exit(); // Pyodide's loop leaves the timers of what it cancelled behind, and Node would wait for them
