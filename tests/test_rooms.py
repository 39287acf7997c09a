"""The rooms of the house: imports run down the table of the design only, and no notebook is passed over."""
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
ORDER = ['keeping', 'machines', 'data', 'quality', 'rolls', 'vpoc', 'stats', 'luck', 'signals', 'backtest', 'sweeps', 'evidence', 'report', 'explore', 'volatility', 'features', 'model', 'train',
         'trade_filter', 'ml_backtest', 'training_runs', 'commands']
ABOVE = {'keeping': [], 'machines': ['keeping'], 'data': ['keeping'], 'quality': ['data'], 'rolls': ['data'], 'vpoc': ['data'], 'stats': [], 'luck': ['keeping', 'data', 'stats'], 'signals': ['stats'],
         'backtest': ['data', 'stats'], 'volatility': ['data', 'stats'], 'features': ['data', 'vpoc', 'stats', 'volatility'], 'model': ['keeping'],
         'train': ['keeping', 'machines', 'data', 'features', 'model', 'stats']}
# keeping needs Python alone, so that whatever writes files may import it
modules = sorted(p for p in (root/'vpoc_backtest').glob('*.py') if not p.name.startswith('_'))
notebooks = sorted((root/'nbs').rglob('*.ipynb'))


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ''] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom) and node.level: names = [f'vpoc_backtest.{n}' for n in names]
        yield from (n.split('.')[1] for n in names if n.startswith('vpoc_backtest.'))


@pytest.mark.parametrize('path', modules, ids=lambda p: p.stem)
def test_imports_run_one_way(path):
    allowed = ABOVE.get(path.stem, ORDER[:ORDER.index(path.stem)])
    assert set(imported_rooms(path)) <= set(allowed)


@pytest.mark.parametrize('path', modules, ids=lambda p: p.stem)
def test_heavy_packages_wait(path):
    top = [n for n in ast.parse(path.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    names = {a.name.split('.')[0] for n in top if isinstance(n, ast.Import) for a in n.names} | {n.module.split('.')[0] for n in top if isinstance(n, ast.ImportFrom)}
    if path.stem in ('model', 'train', 'trade_filter'): names -= {'torch'}  # nothing imports these three before it needs them
    assert not names & {'torch', 'arch', 'matplotlib', 'pyarrow', 'scipy', 'pandas_market_calendars'}


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


def test_docs_can_be_processed():
    "What quarto would be given: runs the import cells and fills in the API tables, where imports mixed with code would fail."
    code = 'from nbdev.serve import proc_nbs; print(proc_nbs(force=True, n_workers=0))'
    done = subprocess.run([sys.executable, '-W', 'error::UserWarning', '-c', code], cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
