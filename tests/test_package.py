"""`import vpoc_backtest as vb`: the names of daily use, loaded when touched, and kept by nbdev."""
import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import vpoc_backtest as vb

source = Path(vb.__file__)
NAMES = [name for name in vb.__all__ if name != '__version__']


def fresh(code):
    "What a new process prints."
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120, cwd=source.parents[1])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize('name', NAMES)
def test_a_name_is_the_object_of_its_module(name):
    module = importlib.import_module(f'vpoc_backtest.{vb._HOME[name]}')
    assert getattr(vb, name) is getattr(module, name)


def test_about_thirty_names_and_each_once():
    assert 30 <= len(NAMES) == len(set(NAMES)) <= 45
    assert sorted(name for names in vb._HOMES.values() for name in names.split()) == sorted(NAMES)
    assert set(NAMES) <= set(dir(vb))
    with pytest.raises(AttributeError, match='no attribute'): vb.no_such_name


@pytest.mark.parametrize('first', ['import vpoc_backtest.explore', 'from vpoc_backtest.explore import explore', 'import vpoc_backtest.ml_backtest', 'pass'])
def test_explore_is_the_function_whatever_was_imported_before(first):
    assert fresh(f'{first}\nimport vpoc_backtest as vb, types, importlib\nassert isinstance(vb.explore, types.FunctionType)\n'
                 "assert vb.explore is importlib.import_module('vpoc_backtest.explore').explore\nprint('good')") == 'good'


def test_the_import_takes_no_time_and_loads_nothing():
    took = [float(fresh('import time; start = time.perf_counter(); import vpoc_backtest; print(time.perf_counter() - start)')) for _ in range(3)]
    assert min(took) < .1
    heavy = fresh('import vpoc_backtest as vb, sys; dir(vb); print(sorted({"pandas", "numpy", "numba", "torch", "matplotlib"} & set(sys.modules)))')
    assert heavy == '[]'


def test_type_checkers_see_the_same_names():
    guarded, = (n for n in ast.parse(source.read_text()).body if isinstance(n, ast.If))
    assert {name.name: n.module for n in guarded.body for name in n.names} == vb._HOME


def test_nbdev_rewrites_the_version_only(tmp_path):
    config = pytest.importorskip('nbdev.config')
    (tmp_path/'__init__.py').write_text(source.read_text().replace(f'"{vb.__version__}"', '"0.0.1"'))
    config.update_version(tmp_path)
    assert (tmp_path/'__init__.py').read_text() == source.read_text()


def test_tab_completion_offers_the_names():
    "What JupyterLab asks its kernel for."
    shell, completer = (pytest.importorskip(f'IPython.core.{name}') for name in ('interactiveshell', 'completer'))
    kernel = shell.InteractiveShell()
    kernel.run_cell('import vpoc_backtest as vb')
    with completer.provisionalcompleter(): offered = {c.text for c in kernel.Completer.completions('vb.', 3)}
    assert offered >= set(NAMES)


def test_a_result_writes_its_report_without_another_import(tmp_path):
    code = f'''
from vpoc_backtest.backtest import run_backtest
from vpoc_backtest.data import add_sessions, random_walk
from vpoc_backtest.signals import SignalRules, make_signals
from vpoc_backtest.vpoc import session_levels
bars = add_sessions(random_walk(60, bars_per_session=39))
result = run_backtest(bars, make_signals(session_levels(bars), SignalRules(rule='migration')))
print(result.report({str(tmp_path/"bare.html")!r}), result.report({str(tmp_path)!r}, bars), sep='|')'''
    assert fresh(code) == f'{tmp_path/"bare.html"}|{tmp_path/"report.html"}'
    bare, drawn = ((tmp_path/name).read_text(encoding='utf-8') for name in ('bare.html', 'report.html'))
    assert drawn.count('<figure') > bare.count('<figure') and all(page.rstrip().endswith('</html>') for page in (bare, drawn))
