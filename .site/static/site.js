// A page opened as a file may not read other pages, which the lines under a search result need.
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;

// The copy button drops the last line end, so that a pasted command does not start by itself.
// Of a whole file it is to keep it: an unseen second line end is the one that it drops.
document.querySelectorAll(".whole-file pre").forEach((file) => {
  const end = file.appendChild(document.createElement("span"));
  end.hidden = true;
  end.textContent = "\n";
});

// A question before a folded output: the guess stays in this browser, and stands beside the result.
const kept = (key) => {
  try {
    return localStorage.getItem(`ddp-guess-${key}`);
  } catch {
    return null; // a browser that keeps nothing
  }
};
const keep = (key, guess) => {
  try {
    localStorage.setItem(`ddp-guess-${key}`, guess);
  } catch {}
};
const words = document.documentElement.lang.startsWith("zh")
  ? { you: "你", was: "结果是" }
  : { you: "you", was: "it was" };
const alike = (guess, was, close) =>
  guess === was || Math.abs(guess - was) <= Math.abs(was) * close + 1e-9;

document.querySelectorAll("fieldset.ddp-ask").forEach((question) => {
  const cell = question.closest(".cell");
  const fold = question.closest("details");
  const { key } = question.dataset;
  const legend = document.createElement("legend");
  legend.append(question.previousSibling); // the line of text above it
  question.prepend(legend);
  if (fold) fold.before(question); // else it would be folded away with the answer
  const tell = (guess) => {
    cell.querySelectorAll(`.ddp-was[data-key="${key}"]`).forEach((verdict) => {
      const { was, close } = verdict.dataset;
      const mark = alike(guess, was, Number(close)) ? " ✓" : "";
      verdict.textContent = `${words.you}: ${guess}, ${words.was} ${was}${mark}`;
    });
    if (fold) fold.open = true;
  };
  const inputs = question.querySelectorAll("input");
  inputs.forEach((input) => {
    input.addEventListener("change", () => {
      if (!input.value.trim()) return;
      keep(key, input.value.trim());
      tell(input.value.trim());
    });
  });
  const before = kept(key);
  if (before === null) return;
  inputs.forEach((input) => {
    if (input.type === "radio") input.checked = input.value === before;
    else input.value = before;
  });
  tell(before);
});

// What scrolls within a page can be reached by the keyboard, and so scrolled by its arrows.
const SCROLLING = "pre, .table-wrapper, .ddp-picture, .ddp-detail, .output.text_html, .formula";
const reachable = () => {
  for (const each of document.querySelectorAll(SCROLLING)) {
    const wide = each.scrollWidth > each.clientWidth || each.scrollHeight > each.clientHeight;
    if (wide && !each.querySelector("a, button, [tabindex]")) each.tabIndex = 0;
  }
};
addEventListener("load", reachable);
addEventListener("resize", reachable);
document.addEventListener("toggle", reachable, true); // a folded output has no size
document.addEventListener("ddp-drawn", reachable, true);

// A lesson can be marked as done: this browser keeps it, and the sidebar shows it.
const isChinese = (address) => address.includes("/zh_CN/");
const lesson = (address) => /notebooks\/(?:zh_CN\/)?(\d\d)_[^/]*\.html$/.exec(address)?.[1];
const say = document.documentElement.lang.startsWith("zh")
  ? { mark: "标记为已学完", done: "已学完" }
  : { mark: "Mark this lesson as done", done: "done" };
const showDone = () => {
  for (const link of document.querySelectorAll(".sidebar-tree a")) {
    const address = new URL(link.href).pathname;
    const number = isChinese(address) === isChinese(location.pathname) && lesson(address);
    link.querySelector(".ddp-done")?.remove(); // not on the link to the page's other edition
    if (!number || kept(`done-${number}`) !== "yes") continue;
    const mark = link.appendChild(document.createElement("span"));
    mark.className = "ddp-done";
    mark.textContent = " ✓";
    mark.title = say.done;
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", say.done);
  }
};
const here = lesson(location.pathname);
if (here) {
  const button = document.createElement("button");
  button.className = "ddp-mark";
  button.type = "button";
  button.textContent = say.mark;
  const press = (yes) => button.setAttribute("aria-pressed", yes);
  press(kept(`done-${here}`) === "yes");
  button.addEventListener("click", () => {
    const yes = button.getAttribute("aria-pressed") !== "true";
    keep(`done-${here}`, yes ? "yes" : "no");
    press(yes);
    showDone();
  });
  document.querySelector("article").append(button);
}
showDone();
