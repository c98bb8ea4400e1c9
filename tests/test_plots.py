"""Charts show the rows that they are given, at the places where the numbers are, in the look that is asked for."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from score_jax import metrics, plot_style, plots, plots_evaluation
from score_jax.plots_evaluation import CHARTS, Measured

LOOKS = {'page': plot_style.PAGE, 'paper': plot_style.PAPER}
KINDS = metrics.KINDS


def row(method: str, temperature: float = 1.0, turns: int = 2, **extra) -> dict:
    figures = {f't{t + 1}': 0.3 + 0.1 * t for t in range(turns)}
    figures |= {'delta': 0.1 * (turns - 1), 'i_to_c': 0.2, 'c_to_i': 0.1, 'changed': 0.5, 'edit_distance': 0.2}
    figures |= {f'{name}_turn{t + 1}': 0.02 * t for name in ('truncated', 'no_answer') for t in range(turns)}
    figures |= {
        f'{key}{end}': value + step for key, value in figures.items() for end, step in (('_low', -.02), ('_high', .02))}
    groups = {name: {key: value for key, value in figures.items() if key[0] == 't'} for name in ('1', '2', '3-5')}
    return dict(method=method, seed=0, temperature=temperature, **figures, by={'solutions': groups},
                edit_histogram={kind: [5, 0, i] + [1] * 8 for i, kind in enumerate(KINDS)}) | extra


def scaling(method: str) -> dict:
    return dict(method=method, seed=0, temperature=0.7, pass_at_k=[
        dict(k=k, accuracy=0.2 * i, accuracy_low=0.1, accuracy_high=0.9) for i, k in enumerate((1, 2, 4), 1)], vote=[
        dict(budget=budget, parallel=0.4, parallel_low=0.3, parallel_high=0.5, sequential=0.45, sequential_low=0.35,
             sequential_high=0.55) for budget in (2, 4)])


def measured(turns: int = 2, methods=('base', 'self_refine', 'stage2')) -> Measured:
    return Measured(
        results=[row(method, temperature, turns) for temperature in (0.0, 1.0) for method in methods],
        attempts=[row(method, 0.0, 10) for method in methods], scaling=[scaling(method) for method in methods])


def figure_of(name: str, data: Measured, look: plot_style.Look = plot_style.PAGE) -> Figure:
    with look.applied():
        return next(chart for chart in CHARTS if chart.name == name).draw(data, look)


def series(panel) -> list[list[float]]:
    """The heights of every line of more than one point that is no level."""
    return [np.round(line.get_ydata(), 6).tolist() for line in panel.lines if len(line.get_ydata()) > 2]


def words(figure: Figure) -> str:
    figure.draw_without_rendering()
    axes = [axis for panel in figure.axes if panel.get_visible() for axis in (panel.xaxis, panel.yaxis)]
    labels = [label.get_text() for axis in axes for label in axis.get_ticklabels()]
    titles = [panel.get_title(loc='left') for panel in figure.axes]
    return ' | '.join(labels + titles + [text.get_text() for legend in figure.legends for text in legend.get_texts()])


def test_every_chart_is_drawn_in_every_look_and_is_of_its_format():
    data = measured(methods=('base', 'stage2'))
    for name, look in LOOKS.items():
        files = plots_evaluation.draw(data, look)
        assert list(files) == [chart.name for chart in CHARTS]
        assert all(data.startswith(b'%PDF' if name == 'paper' else b'\x89PNG') for data in files.values())


def test_print_is_set_in_a_serif_with_its_fonts_embedded_and_fits_a_column():
    figure = figure_of('evaluation', measured(), plot_style.PAPER)
    assert figure.get_figwidth() == 3.25
    assert figure.axes[0].get_yticklabels()[0].get_fontfamily()[0] == 'STIXGeneral'
    file = plots_evaluation.draw(measured(), plot_style.PAPER)['vote']
    assert b'/FontFile2' in file and b'STIXGeneral' in file and b'/Type3' not in file and b'CreationDate' not in file


@pytest.mark.parametrize('turns', [2, 3, 5])
def test_the_evaluation_has_a_mark_for_every_turn_with_its_interval(turns):
    figure = figure_of('evaluation', measured(turns))
    for panel, temperature in zip(figure.axes, ('greedy', 'temperature 1')):
        assert panel.get_title(loc='left') == temperature
        marks = [line.get_xdata()[0] for line in panel.lines if len(line.get_xdata()) == 1]
        assert sorted(marks) == pytest.approx(sorted(30 + 10 * t for t in range(turns) for _ in range(3)))
        bars = [line.get_xdata() for line in panel.lines if len(line.get_xdata()) == 2]
        assert all(high - low == pytest.approx(4) for low, high in bars) and len(bars) == 3 * turns
    assert f'turn {turns}' in words(figure) and f'turn {turns + 1}' not in words(figure)


def test_the_histogram_is_stacked_to_all_responses_and_keeps_copies_apart():
    figure = figure_of('edit_distance', measured())
    panel = figure.axes[0]
    tops = {round(bar.get_x() + bar.get_width() / 2, 3): bar.get_y() + bar.get_height() for bar in panel.patches}
    counts = np.sum(list(row('base')['edit_histogram'].values()), axis=0)
    assert list(tops.values()) == pytest.approx(100 * counts / counts.sum())
    assert min(tops) < 0 and sorted(tops)[1] == pytest.approx(0.05)
    assert 'same' in words(figure) and 'i → c' in words(figure)


@pytest.mark.parametrize('turns', [2, 3])
def test_difficulty_compares_the_first_and_the_last_turn_by_group(turns):
    figure = figure_of('difficulty', measured(turns))
    assert [series(panel) for panel in figure.axes[:3]] == [[[30.0] * 3, [round(30 + 10.0 * (turns - 1), 6)] * 3]] * 3
    assert '3-5' in words(figure) and f'turn {turns}' in words(figure)
    assert (turns == 2) == ('turn 2' in words(figure))


def test_ten_attempts_are_one_line_a_method():
    panel = figure_of('attempts', measured()).axes[0]
    assert series(panel) == [[30.0 + 10 * t for t in range(10)]] * 3


def test_pass_at_k_and_votes_are_over_powers_of_two():
    panel = figure_of('pass_at_k', measured()).axes[0]
    assert series(panel) == [[20.0, 40.0, 60.0]] * 3 and panel.get_xscale() == 'log'
    figure = figure_of('vote', measured())
    heights = [[line.get_ydata().tolist() for line in panel.lines] for panel in figure.axes[:3]]
    assert heights == [[[40.0, 40.0], [45.0, 45.0]]] * 3
    shown = words(figure)
    assert 'side by side' in shown and 'stage2' in shown and not figure.axes[3].get_visible()


def test_only_rows_at_the_temperature_of_training_are_looked_at_closer():
    data = Measured(results=[row('base', 0.9), row('stage2', 0.9), row('base', 0.0), row('base', 3.0)])
    assert [(r['method'], r['temperature']) for r in plots_evaluation.sampled(data.results)] == [
        ('base', 0.9), ('stage2', 0.9)]
    assert plots_evaluation.sampled([row('base', 0.0)]) and plots_evaluation.sampled([{'method': 'x'}]) == []


def test_what_is_not_there_is_not_drawn():
    assert plots_evaluation.draw(Measured(results=[]), plot_style.PAGE) == {}
    bare = dict(method='base', temperature=1.0, t1=0.5, t2=0.5)
    assert list(plots_evaluation.draw(Measured(results=[bare]), plot_style.PAGE)) == ['evaluation']


def test_curves_are_drawn_for_as_many_turns_as_were_logged():
    curves = {'stage2': {'step': np.arange(3.0)} | {f't{t}': np.full(3, t / 10) for t in (1, 2, 3)}}
    chart = next(chart for chart in plots.CHARTS if chart.name == 'accuracy')
    with plot_style.PAGE.applied():
        figure = plots._chart(chart, curves, [row('base', turns=3)], plot_style.PAGE)
    assert series(figure.axes[0]) == [[10.0] * 3, [20.0] * 3, [30.0] * 3]
    assert words(figure).endswith('turn 1 | turn 2 | turn 3 | base')
    assert len(figure.axes[0].lines) == 6  # with the levels of the base
