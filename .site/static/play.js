// Explorables on a page. The course's own Python draws them, in a worker that starts when a reader
// comes near a control; here is only what carries values there and pictures back.
{
  const chinese = document.documentElement.lang.startsWith("zh");
  const say = chinese
    ? {
        file: "本页是作为文件打开的，所以图是静止的。运行 `make serve`，它就会动。",
        move: "移动控件：图由课程自己的 Python 在本页中绘制。",
        starts: "Python 正在启动 …",
        failed: "Python 没能在此浏览器中启动：",
      }
    : {
        file: "Opened as a file, the picture stands still. Run `make serve` in the course, and it moves.",
        move: "Move a control: the course's own Python draws the picture, in this page.",
        starts: "Python starts ...",
        failed: "Python could not start in this browser: ",
      };
  const MS_OF_A_STEP = 1200;
  const roots = [...document.querySelectorAll(".ddp-play")];
  let worker = null;
  let turn = 0;
  const waiting = new Map();

  const tell = (text, busy = false) => {
    for (const root of roots) {
      root.querySelector(".ddp-how").textContent = text;
      root.setAttribute("aria-busy", busy);
    }
  };

  const wake = () => {
    if (worker) return;
    tell(say.starts, true);
    const file = chinese ? "worker.mjs?language=zh_CN" : "worker.mjs";
    worker = new Worker(new URL(file, new URL(roots[0].dataset.play, location)), {
      type: "module",
    });
    worker.onmessage = ({ data }) => {
      if (data.ready) tell(say.move);
      else if (data.failed) tell(say.failed + data.failed);
      else waiting.get(data.turn)(data.told);
      waiting.delete(data.turn);
    };
    worker.onerror = (event) => tell(say.failed + (event.message ?? ""));
  };

  const ask = (question) => {
    wake();
    turn += 1;
    worker.postMessage({ turn, ...question });
    return new Promise((answer) => waiting.set(turn, answer));
  };

  const at = (input) => (input.type === "checkbox" ? input.checked : Number(input.value));

  const label = (input) => {
    if (input.type !== "range") return;
    const options = input.dataset.options && JSON.parse(input.dataset.options);
    const shown = options ? options[input.value] : input.value;
    input.nextElementSibling.textContent = shown;
    if (options) input.setAttribute("aria-valuetext", shown);
  };

  // another control has changed this one: a slider that ends elsewhere, a list with other entries
  const put = (input, { most, options, at: value }) => {
    if (most !== undefined) input.max = most;
    if (options && input.type === "range") {
      input.dataset.options = JSON.stringify(options);
      input.max = options.length - 1;
    } else if (options) {
      input.replaceChildren(...options.map((text, place) => new Option(text, place)));
    }
    if (input.type === "checkbox") input.checked = value;
    else input.value = value;
    label(input);
  };

  const lines = (words) =>
    words.split("\n").flatMap((line, number) => (number ? [document.createElement("br"), line] : [line]));

  const show = (root, told) => {
    for (const [name, control] of Object.entries(told.controls ?? {})) {
      put(root.querySelector(`[name="${name}"]`), control);
    }
    root.querySelector(".ddp-words").replaceChildren(...lines(told.error ?? told.words));
    if (told.error) return; // the last picture that was possible stays
    root.querySelector(".ddp-picture").innerHTML = told.svg;
    root.querySelector(".ddp-detail").innerHTML = told.detail;
  };

  // a button that moves a slider on, step by step, until its end or the next press
  const play = (button, slider) => {
    let timer = null;
    const stop = () => {
      clearInterval(timer);
      timer = null;
      button.setAttribute("aria-pressed", false);
    };
    const put = (value) => {
      slider.value = value;
      slider.dispatchEvent(new Event("input", { bubbles: true }));
    };
    const on = () => {
      if (Number(slider.value) >= Number(slider.max)) stop();
      else put(Number(slider.value) + 1);
    };
    button.addEventListener("click", () => {
      if (timer !== null) return stop();
      button.setAttribute("aria-pressed", true);
      if (Number(slider.value) >= Number(slider.max)) put(slider.min);
      else on();
      timer = setInterval(on, MS_OF_A_STEP);
    });
  };

  const live = (root) => {
    const inputs = [...root.querySelectorAll(".ddp-controls [name]")];
    let ran = false; // the picture shows what the ranks did
    let busy = false;
    let passing = 0; // the timer of a run that passes by itself
    let begins = false; // it is to pass as soon as its first picture is there
    const film = root.querySelector(".ddp-film");
    const moment = film?.querySelector("input");
    const moves = new Set(); // while Python draws, more may come: then only the last values count
    let pressed = false;
    const draw = async () => {
      if (busy) return;
      busy = true;
      while (moves.size || pressed) {
        const press = pressed && !moves.size; // first what moved, then the button
        const question = {
          name: root.dataset.explorable,
          stands: Object.fromEntries(inputs.map((input) => [input.name, at(input)])),
          moved: [...moves].join(","),
          ran: ran || press,
        };
        moves.clear();
        if (press) pressed = false;
        const told = await ask(question);
        ran = told.ran ?? ran;
        show(root, told);
        if (film) film.disabled = !ran;
        if (press && begins) {
          begins = false;
          pass();
        }
      }
      busy = false;
      root.dispatchEvent(new CustomEvent("ddp-drawn"));
    };
    const to = (input) => {
      label(input);
      moves.add(input.name);
      draw();
    };
    const said = root.querySelector(".ddp-words");
    const rest = () => {
      clearInterval(passing);
      passing = 0;
      if (film) film.querySelector(".ddp-pass").textContent = goesOn;
      said.removeAttribute("aria-live");
    };
    const pass = () => {
      const begin = Number(moment.value) < Number(moment.max) ? Number(moment.value) : 0;
      const since = performance.now();
      const next = () => {
        const at = begin + Math.floor((performance.now() - since) / Number(film.dataset.ms));
        moment.value = Math.min(at, Number(moment.max));
        if (at >= Number(moment.max)) rest(); // its last words are spoken
        to(moment);
      };
      said.setAttribute("aria-live", "off"); // eight times a second nobody could listen
      film.querySelector(".ddp-pass").textContent = film.querySelector(".ddp-pass").dataset.stop;
      passing = setInterval(next, Number(film.dataset.ms));
    };
    const goesOn = film?.querySelector(".ddp-pass").textContent;
    film?.querySelector(".ddp-pass").addEventListener("click", () => (passing ? rest() : pass()));
    film?.querySelectorAll(".ddp-step").forEach((button) => {
      button.addEventListener("click", () => {
        rest();
        moment.value = Number(moment.value) + Number(button.dataset.by);
        to(moment);
      });
    });
    for (const input of inputs) {
      label(input); // a browser may remember where a control stood
      input.addEventListener("input", () => {
        rest();
        to(input);
      });
    }
    const player = root.querySelector(".ddp-steps");
    if (player) play(player, root.querySelector(`[name="${player.dataset.plays}"]`));
    root.querySelector(".ddp-run")?.addEventListener("click", () => {
      pressed = true;
      if (film) {
        rest();
        const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
        moment.value = still ? moment.max : 0;
        label(moment);
        begins = !still;
      }
      draw();
    });
    for (const near of ["pointerenter", "focusin", "touchstart"]) {
      root.addEventListener(near, wake, { once: true, passive: true });
    }
    root.querySelector(".ddp-controls").addEventListener("submit", (event) => event.preventDefault());
    root.classList.add("ddp-live");
  };

  if (location.protocol === "file:") tell(say.file);
  else if (window.Worker && window.WebAssembly && window.DecompressionStream) {
    tell(say.move);
    roots.forEach(live);
  }
}
