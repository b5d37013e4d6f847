"""The colours of all pictures, without matplotlib: explorables also draw in a browser's Python.

They are from Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), which people with any kind
of colour vision can tell apart; markers, line styles and hatches say the same again.
"""

GREY = "#767676"  # contrast 4.5 on white, 4.2 on JupyterLab's dark #111111
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY = "#E69F00", "#56B4E9"
LINES = (BLUE, VERMILLION, GREEN, PURPLE)  # contrast of 3 or more on both backgrounds
FILLS = (SKY, ORANGE, GREEN, PURPLE, BLUE, VERMILLION)  # for areas, drawn with a grey edge
MARKERS, HATCHES = "osD^vP*X", ("", "///", "...", "xxx")
