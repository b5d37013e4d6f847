"""Readers who hear a page, or use its keys: axe finds no serious fault, Tab reaches everything."""

import os

import pytest
from conftest import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
AXE = ROOT / ".site" / "node_modules" / "axe-core" / "axe.min.js"
KINDS = (
    *("index", "explorables", "notebooks/zh_CN/01_process_groups", "templates/ddp_spawn"),
    *("recipes/index", "exercises", "api/ddp_helpers", "predictions", "search"),
)
SCREENS = {
    "light": ({"viewport": {"width": 1400, "height": 1000}, "color_scheme": "light"}, KINDS),
    "dark, on a phone": (
        {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
        ("zh_CN", "explorables", "notebooks/03_training_loop", "templates/ddp_spawn"),
    ),
}
FAULTS = """async () => {
  const {violations} = await axe.run(document, {resultTypes: ["violations"]});
  return violations
    .filter(({impact}) => impact === "serious" || impact === "critical")
    .map(({id, nodes}) => [id, nodes.slice(0, 3).map((each) => each.html.slice(0, 200))]);
}"""
WANTED = "article :is(a[href], input, select, summary, button, [tabindex='0'])"
NOTE = f"""() => {{
  const shown = {{visibilityProperty: true}};
  const all = [...document.querySelectorAll("{WANTED}")].filter((e) => e.checkVisibility(shown));
  window.missed = new Set(all);
  for (const each of all) {{  // of radio buttons Tab reaches one, and arrows reach the others
    const radios = each.type === "radio" && each.closest("fieldset").querySelectorAll("input");
    const others = radios || [each];
    each.addEventListener("focus", () => others.forEach((other) => window.missed.delete(other)));
  }}
  document.activeElement?.blur();
  return all.length;
}}"""


@pytest.mark.parametrize("name", SCREENS)
def test_axe_finds_no_serious_fault_on_any_kind_of_page(chrome, address, name):
    if not AXE.exists():
        assert not os.environ.get("CI"), "CI must install axe-core: npm ci --prefix .site"
        pytest.skip("no axe-core here: npm ci --prefix .site")
    axe = AXE.read_text(encoding="utf-8")
    screen, kinds = SCREENS[name]
    context, found = chrome.new_context(**screen), {}
    page = context.new_page()
    for kind in kinds:
        page.goto(f"{address}{kind}.html")
        if kind == "explorables":  # as it is after a move
            page.get_by_label("step").first.press("ArrowRight")
            page.locator("svg[aria-label^='Step 3']").wait_for()
        if kind.endswith("01_process_groups"):  # with a run that is played
            page.locator(".ddp-recorded .ddp-run").first.click()
            page.locator(".ddp-recorded svg").first.wait_for(state="attached")
        page.evaluate(axe)
        if faults := page.evaluate(FAULTS):
            found[kind] = faults
    context.close()
    assert found == {}


@pytest.mark.parametrize("lesson", ["01_process_groups", "zh_CN/01_process_groups"])
def test_the_keyboard_reaches_all_of_a_lesson(page, address, lesson):
    page.goto(f"{address}notebooks/{lesson}.html")
    number = page.evaluate(NOTE)
    assert number > 30
    for _ in range(3 * number + 100):
        if not page.evaluate("window.missed.size"):
            break
        page.keyboard.press("Tab")
    missed = "[...window.missed].map((each) => each.outerHTML.slice(0, 200))"
    assert page.evaluate(missed) == []
