"""The rooms of the house: imports run down the table of the design only, and no notebook is passed over."""
import ast
import json
import re
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
ORDER = ['storage', 'parallel', 'display', 'data', 'readers', 'data_quality', 'rolls', 'vpoc', 'trades', 'stats', 'multiple_testing',
         'volatility', 'signals', 'orders', 'performance', 'backtest', 'sweeps', 'causality', 'drift', 'evidence', 'verdict', 'report',
         'explore', 'features', 'model', 'train', 'meta_labeling', 'run_config', 'ml_backtest', 'training_runs', 'cli']
ABOVE = {'storage': [], 'parallel': ['storage'], 'display': [], 'data': ['storage', 'display'], 'readers': ['storage', 'data', 'display'],
         'data_quality': ['display', 'data', 'readers'], 'rolls': ['data', 'display'], 'vpoc': ['data', 'display', 'readers'], 'trades': ['data', 'readers', 'vpoc'],
         'stats': ['display'], 'multiple_testing': ['storage', 'display', 'data', 'stats'], 'signals': ['data', 'stats'],
         'volatility': ['display', 'data', 'stats'], 'model': ['storage']}
# keeping needs Python alone, so that whatever writes files may import it
modules = sorted(p for p in (root/'vpoc_backtest').glob('*.py') if not p.name.startswith('_'))
notebooks = sorted((root/'nbs').rglob('*.ipynb'))


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ''] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom) and node.level: names = [f'vpoc_backtest.{n}' for n in names if n]
        yield from (n.split('.')[1] for n in names if n.startswith('vpoc_backtest.'))


@pytest.mark.parametrize('path', modules, ids=lambda p: p.stem)
def test_imports_run_one_way(path):
    allowed = ABOVE.get(path.stem, ORDER[:ORDER.index(path.stem)])
    assert set(imported_rooms(path)) <= set(allowed)


@pytest.mark.parametrize('path', modules, ids=lambda p: p.stem)
def test_heavy_packages_wait(path):
    top = [n for n in ast.parse(path.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    names = {a.name.split('.')[0] for n in top if isinstance(n, ast.Import) for a in n.names} | {(n.module or '').split('.')[0] for n in top if isinstance(n, ast.ImportFrom)}
    if path.stem in ('model', 'train', 'trade_filter'): names -= {'torch'}  # nothing imports these three before it needs them
    assert not names & {'torch', 'arch', 'matplotlib', 'pyarrow', 'scipy', 'pandas_market_calendars'}


INNER = {'FittedWindow', 'TrainingBatch'}  # handed from one part of a training to the next, and to nobody else
BULKY = re.compile('ndarray|DataFrame|Series|DatetimeIndex|Tensor')


def bulky(kind):
    "Fields of a dataclass that its own repr would print in many lines."
    fields = [n for n in kind.body if isinstance(n, ast.AnnAssign)]
    return [n.target.id for n in fields if BULKY.search(ast.unparse(n.annotation)) and 'repr=False' not in ast.unparse(n)]


@pytest.mark.parametrize('path', modules, ids=lambda p: p.stem)
def test_no_result_prints_its_arrays(path):
    "A public dataclass that holds arrays or tables says itself how it is shown."
    body = ast.parse(path.read_text()).body
    kinds = [n for n in body if isinstance(n, ast.ClassDef) and not n.name.startswith('_') and any('dataclass' in ast.unparse(d) for d in n.decorator_list)]
    told = {k.name for k in kinds for m in k.body if isinstance(m, ast.FunctionDef) and m.name == '__repr__'}
    told |= {ast.unparse(n.args.args[0].annotation) for n in body if isinstance(n, ast.FunctionDef) and n.name == '__repr__'}  # added by `patch`
    assert not {k.name: bulky(k) for k in kinds if bulky(k) and k.name not in told | INNER}


@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.name)
def test_notebook_is_python_and_was_run(path):
    notebook = json.loads(path.read_text())
    assert notebook['metadata']['kernelspec']['language'] == 'python', 'nbdev_test passes over other kernels without a word'
    outputs = [o for c in notebook['cells'] for o in c.get('outputs', [])]
    assert outputs and not any(o['output_type'] == 'error' for o in outputs)


def test_every_notebook_has_its_module():
    exported = {p.stem for p in modules}
    for path in (root/'nbs').glob('0*.ipynb'):
        named = {m[1] for c in json.loads(path.read_text())['cells'] for m in [re.match(r'#\| export (\w+)', ''.join(c['source']))] if m}  # a continued module
        assert named <= exported and (named or path.stem.split('_', 1)[1] in exported)
