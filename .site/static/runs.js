// A lesson's recorded runs: what the ranks did, played under the cell. All of it is in the page.
{
  const SHORTEST = 350;
  const LONGEST = 1500; // milliseconds that a moment stays
  const motion = matchMedia("(prefers-reduced-motion: reduce)");

  const open = (root) => {
    const { rows, lines, seconds } = JSON.parse(root.querySelector("script").textContent);
    root.append(root.querySelector("template").content);
    const moments = [...rows, ...lines].map(([at]) => at).concat(seconds);
    const times = [...new Set(moments)].sort((a, b) => a - b);
    const [slider, button] = [root.querySelector("input"), root.querySelector(".ddp-pass")];
    const [printed, said] = [root.querySelector(".ddp-lines"), root.querySelector(".ddp-said")];
    const clock = root.querySelector("output");
    const picture = root.querySelector("svg");
    const play = button.textContent;
    let timer = 0;
    slider.max = times.length - 1;

    const show = () => {
      const now = times[Number(slider.value)];
      const last = Number(slider.value) === times.length - 1;
      clock.textContent = `${now.toFixed(3)} s / ${seconds.toFixed(3)} s`;
      slider.setAttribute("aria-valuetext", `${now.toFixed(3)} s`);
      const row = rows.filter(([at]) => at <= now).at(-1);
      if (picture) picture.style.clipPath = last ? "" : `inset(0 0 ${row ? row[1] : 100}% 0)`;
      const shown = lines.filter(([at]) => at <= now);
      printed.textContent = shown
        .map(([at, rank, text]) => `${at.toFixed(3)} s  ${rank === null ? "" : `[rank ${rank}] `}${text}\n`)
        .join("");
      printed.scrollTop = printed.scrollHeight;
      said.textContent = last ? said.dataset.words : "";
    };
    const rest = () => {
      clearTimeout(timer);
      timer = 0;
      button.textContent = play;
    };
    const pass = () => {
      const at = Number(slider.value);
      if (at === times.length - 1) return rest();
      const wait = Math.min(LONGEST, Math.max(SHORTEST, 1000 * (times[at + 1] - times[at])));
      timer = setTimeout(() => {
        slider.value = at + 1;
        show();
        pass();
      }, wait);
    };
    const start = () => {
      if (Number(slider.value) === times.length - 1) slider.value = 0;
      show();
      button.textContent = button.dataset.stop;
      pass();
    };
    button.addEventListener("click", () => (timer ? rest() : start()));
    root.querySelectorAll("[data-by]").forEach((step) => {
      step.addEventListener("click", () => {
        rest();
        slider.value = Number(slider.value) + Number(step.dataset.by);
        show();
      });
    });
    slider.addEventListener("input", () => {
      rest();
      show();
    });
    if (motion.matches) slider.value = times.length - 1; // how it ended, without a movement
    show();
    if (!motion.matches) start();
    button.focus();
  };

  for (const root of document.querySelectorAll(".ddp-recorded")) {
    root.closest("details")?.after(root); // an answer that is folded stays so
    const button = root.querySelector(".ddp-run");
    button.hidden = false;
    button.addEventListener("click", () => {
      button.remove();
      open(root);
    });
  }
}
