"""The layout: imports run down the list of modules, notebooks are run and of a readable size, the surface is small."""
import ast
import functools
import json
import re
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
ORDER = ['storage', 'parallel', 'display', 'data', 'layouts', 'parsing', 'readers', 'data_quality', 'rolls', 'profiles', 'vpoc', 'tpo', 'market_profile', 'trades', 'order_flow', 'level_error',
         'stats', 'multiple_testing',
         'volatility', 'signals', 'orders', 'own_rules', 'performance', 'fills', 'backtest', 'sweeps', 'causality', 'drift', 'evidence', 'verdict', 'lore', 'setups', 'explore_day', 'chart',
         'report',
         'report_notebook', 'report_page',
         'explore', 'trade_lists', 'trade_fills', 'trade_audit', 'features', 'splits', 'model', 'ensemble_training', 'contenders', 'calibration', 'train', 'meta_labeling', 'filter_evidence', 'run_config', 'data_report', 'filter_report', 'ml_backtest', 'training_runs', 'next_session', 'monitor', 'cli', 'setups_cli', 'audit_cli', 'orders_cli', 'monitor_cli']
ABOVE = {'storage': [], 'parallel': ['storage'], 'display': [], 'data': ['storage', 'display'], 'layouts': ['data'], 'parsing': ['data', 'layouts'],
         'readers': ['storage', 'data', 'display', 'layouts', 'parsing'],
         'data_quality': ['display', 'data', 'parsing', 'readers'], 'rolls': ['data', 'display'], 'profiles': ['data'],
         'vpoc': ['data', 'display', 'profiles'], 'tpo': ['data', 'display', 'profiles', 'vpoc'],
         'market_profile': ['data', 'display', 'profiles', 'vpoc', 'tpo'], 'trades': ['data', 'parsing', 'profiles', 'vpoc'],
         'order_flow': ['display', 'data', 'profiles', 'vpoc', 'trades'],
         'level_error': ['data', 'parsing', 'profiles', 'vpoc', 'trades', 'order_flow'],
         'stats': ['display'], 'multiple_testing': ['storage', 'display', 'data', 'stats'], 'signals': ['data', 'stats'],
         'volatility': ['display', 'data', 'stats'], 'trade_lists': ['data', 'layouts', 'parsing'],
         'calibration': ['display'], 'splits': ['display'], 'model': ['storage']}
# storage needs Python alone, so that whatever writes files may import it
modules = sorted(p for p in (root/'vpoc_backtest').glob('*.py') if not p.name.startswith('_'))
notebooks = sorted((root/'nbs').rglob('*.ipynb'))


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ''] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom) and node.level: names = [f'vpoc_backtest.{n}' for n in names if n]
        yield from (n.split('.')[1] for n in names if n.startswith('vpoc_backtest.'))


@pytest.mark.parametrize('path', modules, ids=lambda p: p.stem)
def test_imports_run_one_way(path):
    allowed = ABOVE.get(path.stem, ORDER[:ORDER.index(path.stem)])
    assert set(imported_modules(path)) <= set(allowed)


@pytest.mark.parametrize('path', modules, ids=lambda p: p.stem)
def test_heavy_packages_wait(path):
    top = [n for n in ast.parse(path.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    names = {a.name.split('.')[0] for n in top if isinstance(n, ast.Import) for a in n.names} | {(n.module or '').split('.')[0] for n in top if isinstance(n, ast.ImportFrom)}
    if path.stem in ('model', 'ensemble_training', 'contenders', 'calibration', 'train', 'meta_labeling', 'filter_evidence'): names -= {'torch'}  # nothing imports these before it needs them
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


@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.name)
def test_notebook_can_be_opened_anywhere(path):
    assert path.stat().st_size < 300_000, 'pictures at half the resolution, fewer rows of tables'


def public_names(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__':
            return [e.value for e in node.value.elts]


@functools.cache
def all_names(): return {name for path in modules for name in public_names(path)}


def test_the_surface_is_small_and_no_name_means_two_things():
    homes = {}
    for path in modules:
        for name in public_names(path): homes.setdefault(name, []).append(path.stem)
    assert len(homes) <= 150
    twice = {name: places for name, places in homes.items() if len(places) > 1}
    assert not twice


# Its keywords are what users of the design's first notebook type; other functions take them as one `LevelConfig`.
MANY_OPTIONS = {'session_levels': 9}


@pytest.mark.parametrize('path', modules, ids=lambda p: p.stem)
def test_functions_have_at_most_seven_parameters(path):
    functions = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)]
    many = {f.name: len(f.args.args) + len(f.args.kwonlyargs) for f in functions}
    assert not {name: n for name, n in many.items() if n > MANY_OPTIONS.get(name, 7)}


def test_no_helper_is_written_twice():
    homes = {}
    for path in modules:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)): homes.setdefault(node.name, []).append(path.stem)
    assert not {name: where for name, where in homes.items() if len(where) > 1}


def nbs_imports(path):
    "Modules of the package that a notebook's test cells import."
    for cell in json.loads(path.read_text())['cells']:
        code = ''.join(cell['source'])
        if cell['cell_type'] != 'code' or code.startswith('#| export'): continue
        for name in re.findall(r'^\s*(?:from|import) vpoc_backtest\.(\w+)', code, re.M): yield name


@pytest.mark.parametrize('path', sorted((root/'nbs').glob('0*.ipynb')), ids=lambda p: p.stem)
def test_cells_import_down_the_list_too(path):
    at = ORDER.index(path.stem.split('_', 1)[1])
    assert {name for name in nbs_imports(path) if ORDER.index(name) > at} == set()


def test_the_index_of_names_is_that_of_the_package():
    notebook = json.loads((root/'nbs/names.ipynb').read_text())
    shown = ''.join(''.join(o['data']['text/markdown']) for c in notebook['cells'] for o in c.get('outputs', []) if 'data' in o)
    assert set(re.findall(r'^\| `(\w+)`', shown, re.M)) == all_names()


REACH = 6  # cells below its definition in which the example of a public name stands


def names_used(code):
    tree = ast.parse(re.sub(r'^\s*[%!].*', '', code, flags=re.M))
    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} | {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}


def names_defined(code):
    for node in ast.parse(code).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): yield node.name
        if isinstance(node, ast.Assign): yield from (t.id for t in node.targets if isinstance(t, ast.Name))


def names_shown(cell):
    "Names that a cell uses which readers of the documentation see, together with what came of it."
    code = ''.join(cell['source'])
    seen = any('data' in o or o.get('name') == 'stdout' for o in cell.get('outputs', []))
    return names_used(code) if seen and not re.match(r'#\| ?(export|hide)', code) else set()


@pytest.mark.parametrize('path', sorted((root/'nbs').glob('0*.ipynb')), ids=lambda p: p.stem)
def test_every_public_name_has_an_example_below_its_entry(path):
    cells = json.loads(path.read_text())['cells']
    without = []
    for at, cell in enumerate(cells):
        code = ''.join(cell['source'])
        if not re.match(r'#\| ?exporti?\b', code): continue
        below = [c for c in cells[at + 1:at + 1 + REACH] if c['cell_type'] == 'code']
        without += sorted(all_names() & set(names_defined(code)) - set().union(*map(names_shown, below)))
    assert not without, 'end a visible cell that uses it with a line that shows something'
