"""A button that moves a slider on, step by step, until its end or the next press."""

from __future__ import annotations

import threading
from typing import Any

from ddp_helpers.words import shown

SECONDS = 1.2  # of a step: long enough to see what has moved


class Player:
    """It plays in a thread, so the notebook stays free; `button` is what a reader presses.

    The button of ipywidgets has no name that a screen reader could say.
    """

    def __init__(self, slider: Any) -> None:
        import ipywidgets

        self.slider = slider
        self._stop: threading.Event | None = None
        self.button = ipywidgets.Button(layout={"width": "auto"}, button_style="primary")
        self.button.on_click(lambda _: self.press())
        self._say("Play the steps", "play")

    def press(self) -> None:
        """Begin, from the start again if it stands at the end; or pause."""
        if self._stop is not None:
            self._stop.set()
            return
        self._stop = threading.Event()
        self._say("Pause", "pause")
        threading.Thread(target=self._play, args=(self._stop,), daemon=True).start()

    def _play(self, stop: threading.Event) -> None:
        slider = self.slider
        slider.value = slider.min if slider.value >= slider.max else slider.value + 1
        while not stop.wait(SECONDS) and slider.value < slider.max:
            slider.value += 1
        self._stop = None
        self._say("Play the steps", "play")

    def _say(self, text: str, icon: str) -> None:
        self.button.description = self.button.tooltip = shown(text)
        self.button.icon = icon
