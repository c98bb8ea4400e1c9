"""How charts look: colours, type and sizes, for the page and for a printed column."""

import contextlib
import io
import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from score_jax.jsonl import number, plain

logging.getLogger('fontTools').setLevel(logging.WARNING)  # a PDF says a page of what it did to its fonts

# Blue, vermilion and ochre for the turns, green and purple for the better and the worse (after Okabe and Ito's
# colour-blind safe set, lightened for the dark page). `face` is the background of the cards the charts lie on.
LIGHT = dict(face='#ffffff', ink='#1d2430', muted='#667085', grid='#e6e9ee', turn1='#0072b2', turn2='#d55e00',
             turn3='#9a7200', turn4='#4b5563', better='#00845f', worse='#a3457f')
DARK = dict(face='#191d24', ink='#e6e9ee', muted='#98a2b3', grid='#2c323c', turn1='#56b4e9', turn2='#f28e4b',
            turn3='#e3c04a', turn4='#b6bec9', better='#35c79b', worse='#dd8fbb')
METHODS = ('turn4', 'turn3', 'turn1', 'turn2', 'better', 'worse')  # colours of methods in one panel, in their order
MARKERS = 'oDs^vPX'
LABEL = 24  # characters of a method's name that a chart has room for


@dataclass(frozen=True, kw_only=True)
class Look:
    """`width` of a figure in inches, `size` of its smallest type in points."""

    colours: dict[str, str]
    families: tuple[str, ...]
    size: float
    width: float
    format: str

    def turn(self, turn: int) -> str:
        """The colour of turn 1, 2, ...; from the fourth on they share one."""
        return self.colours[f'turn{min(turn, 4)}']

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Charts that are made and saved inside look like this."""
        c = self.colours
        rc = {
            'font.family': list(self.families), 'font.size': self.size, 'axes.labelsize': self.size * 1.06,
            'axes.titlesize': self.size * 1.06, 'figure.labelsize': self.size * 1.06, 'legend.fontsize': self.size,
            'xtick.labelsize': self.size, 'ytick.labelsize': self.size, 'mathtext.fontset': 'stix',
            'text.color': c['ink'], 'axes.labelcolor': c['ink'], 'axes.edgecolor': c['muted'],
            'axes.titlecolor': c['muted'], 'axes.titlelocation': 'left', 'axes.facecolor': c['face'],
            'figure.facecolor': c['face'], 'savefig.facecolor': c['face'], 'xtick.color': c['muted'],
            'ytick.color': c['muted'], 'xtick.labelcolor': c['ink'], 'ytick.labelcolor': c['ink'],
            'xtick.major.size': 3, 'ytick.major.size': 0, 'axes.spines.left': False, 'axes.spines.right': False,
            'axes.spines.top': False, 'grid.color': c['grid'], 'grid.linewidth': 0.8, 'axes.axisbelow': True,
            'legend.frameon': False, 'legend.handlelength': 1.8, 'legend.columnspacing': 1.4,
            'pdf.fonttype': 42, 'text.parse_math': False, 'savefig.dpi': 190}
        with matplotlib.rc_context(rc):
            yield

    def saved(self, figure: Figure) -> bytes:
        """The file of a figure, the same for the same figure."""
        buffer = io.BytesIO()
        dates = {'metadata': {'CreationDate': None}} if self.format == 'pdf' else {}
        if engine := figure.get_layout_engine():  # as savefig would, but that it draws all once more for it
            figure.set_dpi(matplotlib.rcParams['savefig.dpi'])
            engine.execute(figure)
            figure.set_layout_engine('none')
        figure.savefig(buffer, format=self.format, **dates)
        return buffer.getvalue()


# On the page 9 pt must still be readable at the width of a phone. On paper: a column of a two-column page, and Times
# (STIX comes with matplotlib, and looks like it).
_SANS = ('DejaVu Sans',)
PAGE = Look(colours=LIGHT, families=_SANS, size=9, width=4.3, format='png')
PAPER = Look(
    colours=LIGHT | dict(ink='#000000', muted='#444444', grid='#e2e2e2'), families=('STIXGeneral', 'DejaVu Sans'),
    size=8, width=3.25, format='pdf')


def panels(look: Look, count: int, *, columns: int = 2, height: float = 1.35, **shared) -> tuple[Figure, list[Axes]]:
    """A figure of `count` small panels, `height` of a row as a share of a panel's width at 2 columns."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(look.width, look.width * (0.16 + rows * 0.5 * height)), layout='constrained')
    grid = figure.subplots(rows, columns, squeeze=False, **shared).ravel()
    for panel in grid[count:]:
        panel.set_visible(False)
    for panel in grid[max(count - columns, 0):count]:
        panel.tick_params(labelbottom=True)  # also with nothing below
    return figure, list(grid[:count])


def legend(figure: Figure, handles: list[Line2D]) -> None:
    """Above the panels, in rows of three."""
    figure.legend(handles=handles, loc='outside upper left', ncols=min(len(handles), 3), borderaxespad=0.2)


def handle(colour: str, label: str, marker: str = '', style='-') -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], color=colour, marker=marker or None, linewidth=2 if style == '-' else 1.2, linestyle=style,
                  markersize=5, label=label)


def temperature_label(row: dict) -> str:
    """`greedy`, or the temperature."""
    temperature = number(row, 'temperature')
    if not math.isfinite(temperature):
        return 'temperature not given'
    return 'greedy' if temperature == 0 else f'temperature {temperature:g}'


def row_label(row: dict, rows: list[dict]) -> str:
    """The method, and its seed where `rows` has the method more than once."""
    method = str(row.get('method', '?'))
    repeated = sum(other.get('method') == row.get('method') for other in rows) > 1
    return plain(f"{method} · seed {row.get('seed', '?')}" if repeated else method)


def shorten(label: str, longest: int = LABEL) -> str:
    """`label`, cut where it is longer."""
    return label if len(label) <= longest else label[: longest - 1] + '…'


def turn_keys(rows: Iterable[dict]) -> list[str]:
    """`t1`, `t2` and so on, as far as any of the rows has them as numbers."""
    keys = []
    rows = list(rows)
    while any(math.isfinite(number(row, f't{len(keys) + 1}')) for row in rows):
        keys.append(f't{len(keys) + 1}')
    return keys
