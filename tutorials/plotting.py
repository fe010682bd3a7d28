r"""The look of the pictures in the notebooks, and what more than one of them draws."""

import matplotlib.pyplot as plt
from IPython.display import Markdown, display

WIDE = (10.5, 3.5)  # for three panels; style() sets the size for one or two
COLORS = {  # one colour for a thing in all notebooks
    "PMD-mean": "tab:green", "PMD-part": "tab:orange", "no weight": "tab:gray", "weight": "tab:blue", "clip": "tab:red",
    "fkl": "tab:blue", "rkl": "tab:orange", "ufkl": "tab:cyan", "urkl": "tab:red",
    "k1": "tab:gray", "k2": "tab:orange", "k3": "tab:blue",
}


def style():
    r"""Size, letters and grid of every picture from here on."""
    plt.rcParams.update({"figure.figsize": (9, 3.5), "figure.dpi": 100, "figure.constrained_layout.use": True,
                         "font.size": 9, "axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.3})


def show(description):
    r"""Shows the present figure and a sentence that describes it, for those who do not see it and those who do.

    The sentence is the picture's alt text where a viewer reads it (nbconvert does), and a line below it for the others.
    """
    display(plt.gcf(), metadata={"image/png": {"alt": description}})
    display(Markdown(f"*Picture: {description}*"))
    plt.close()


def explore(draw, **choices):
    r"""A slider for each argument of draw, over the values given, from the middle one. Nothing without ipywidgets."""
    try:
        from ipywidgets import SelectionSlider, interact
    except ImportError:
        return

    def redraw(**values):
        draw(**values)
        plt.show()

    interact(redraw, **{
        name: SelectionSlider(options=options, value=options[len(options) // 2], continuous_update=False)
        for name, options in choices.items()
    })


def bars(axes, groups, labels, colors=None, fmt=None):
    r"""Bars side by side. groups: name -> heights, one for each of the labels; fmt: how to write a height above it."""
    width = 0.8 / len(groups)
    for i, (name, heights) in enumerate(groups.items()):
        places = [k + (i + 0.5) * width - 0.4 for k in range(len(labels))]
        drawn = axes.bar(places, heights, width, color=colors and colors[name], label=name)
        if fmt:
            axes.bar_label(drawn, fmt=fmt, fontsize=8)
    axes.set_xticks(range(len(labels)), labels)


def matrix(axes, values, rows, columns, texts, cmap):
    r"""Cells coloured by values [rows, columns] between 0 and 1, with a text in each; returns the image."""
    image = axes.imshow(values, cmap=cmap, vmin=0, vmax=1, aspect="auto")
    for i in range(len(rows)):
        for j in range(len(columns)):
            axes.text(j, i, texts[i][j], ha="center", va="center", color="white" if values[i][j] > 0.5 else "black")
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="right", parse_math=False)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    axes.grid(False)
    return image


def band(axes, x, runs, color, label):
    r"""The mean of runs [len(x), S] over S, and a band in which 80 % of them lie."""
    axes.plot(x, runs.mean(dim=1), color=color, label=label)
    axes.fill_between(x, runs.quantile(0.1, dim=1), runs.quantile(0.9, dim=1), color=color, alpha=0.12)
