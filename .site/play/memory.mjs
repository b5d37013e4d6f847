// The memory of a Python that has drawn every explorable once: node memory.mjs PYODIDE MODULES OUT
import { readFileSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [pyodide, modules, out] = process.argv.slice(2);
const { loadPyodide } = await import(pathToFileURL(resolve(pyodide, "pyodide.mjs")).href);
const python = await loadPyodide({ _makeSnapshot: true });
for (const [name, text] of Object.entries(JSON.parse(readFileSync(modules, "utf8")))) {
  const path = `/course/${name}`;
  python.FS.mkdirTree(path.slice(0, path.lastIndexOf("/")));
  python.FS.writeFile(path, text);
}
python.runPython(`
import sys
sys.path.insert(0, "/course")
sys.dont_write_bytecode = True
import mover
mover.warm_up()
import gc
gc.collect()
`);
writeFileSync(out, python.makeMemorySnapshot());
