// A page's Python, beside the page so that it never stands still: Pyodide with the course's modules.
import { loadPyodide } from "./pyodide.mjs";

const language = new URL(import.meta.url).searchParams.get("language") ?? "";
const here = (name) => new URL(name, import.meta.url).href;

// with its memory as it was after drawing all once, it need not start or import anything
const memory = async () => {
  const answer = await fetch(here("memory.gz"));
  if (!answer.ok) return undefined;
  const unpacked = answer.body.pipeThrough(new DecompressionStream("gzip"));
  return new Response(unpacked).arrayBuffer();
};

const listed = (name) => fetch(here(name)).then((answer) => answer.json());
const files = Promise.all([
  listed("modules.json"),
  language ? listed(`words.${language}.json`) : {},
]).then((found) => Object.assign({}, ...found));

const start = async () => {
  const before = await memory().catch(() => undefined);
  const options = { indexURL: here("./"), _loadSnapshot: before };
  const python = await loadPyodide(options).catch(() => loadPyodide({ indexURL: here("./") }));
  for (const [name, text] of Object.entries(await files)) {
    const path = `/course/${name}`;
    python.FS.mkdirTree(path.slice(0, path.lastIndexOf("/")));
    python.FS.writeFile(path, text);
  }
  python.runPython(`
import sys
if "/course" not in sys.path:
    sys.path.insert(0, "/course")
import importlib
importlib.invalidate_caches()  # the memory knows these folders without what was written now
import spoken
`);
  return python.globals.get("spoken").move;
};

const move = start();
move.then(
  () => postMessage({ ready: true }),
  (error) => postMessage({ failed: String(error) }),
);

onmessage = async ({ data: { turn, name, stands, moved, ran } }) => {
  try {
    const told = (await move)(name, JSON.stringify(stands), moved, ran, language);
    postMessage({ turn, told: JSON.parse(told) });
  } catch (error) {
    postMessage({ turn, told: { error: String(error) } });
  }
};
