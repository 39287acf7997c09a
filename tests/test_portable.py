"""What another machine needs: no real data beside the clone, no Linux, no particular encoding; and the workflow that tries it."""
import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

root = Path(__file__).parents[1]
notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
modules = sorted((root/'vpoc_backtest').glob('*.py'))
python = [*modules, *sorted((root/'tests').glob('*.py')), *sorted((root/'.ci').glob('*.py')), root/'setup.py']
SYSTEM = {'fcntl', 'resource', 'pwd', 'grp', 'termios', 'pty', 'msvcrt', 'winreg'}  # modules that only some systems have


def cells(path):
    "Sources of the code cells; magics are left out."
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] == 'code': yield re.sub(r'^(\s*)[%!].*$', r'\1pass', ''.join(cell['source']), flags=re.M)


def calls(tree, *names): return [n for n in ast.walk(tree) if isinstance(n, ast.Call) and (getattr(n.func, 'id', '') or getattr(n.func, 'attr', '')) in names]


@pytest.mark.parametrize('path', notebooks + python, ids=lambda p: p.name)
def test_dates_are_written_on_every_system(path):
    "strftime's codes with a minus are not known on Windows: use `_format_date` of data."
    text = '\n'.join(cells(path)) if path.suffix == '.ipynb' else path.read_text(encoding='utf-8')
    assert not re.findall('%' + '-[a-zA-Z]', text)


@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.name)
def test_expected_failures_name_their_exception(path):
    "Without `exc` a typo would do as well."
    found = [call for source in cells(path) for call in calls(ast.parse(source), 'test_fail')]
    assert not [ast.unparse(call) for call in found if not any(k.arg == 'exc' and ast.unparse(k.value) != 'Exception' for k in call.keywords)]


def outputs(node): return [c for c in ast.walk(node) if isinstance(c, ast.Call) and re.match(r'(display|print|axes|plot_\w+|html_\w+)$', getattr(c.func, 'id', ''))]


def hangs_on_data(source):
    "Whether all that a cell shows stands under an `if shared.exists()` without an else, or any of its pictures does."
    body = ast.parse(source).body
    only = [n for n in ast.walk(ast.Module(body, [])) if isinstance(n, ast.If) and 'shared.exists()' in ast.unparse(n.test) and not n.orelse]
    hidden = [c for n in only for c in outputs(n)]
    if any(c.func.id not in ('display', 'print') for c in hidden): return True
    shown = [c for n in body if not isinstance(n, (ast.FunctionDef, ast.ClassDef)) for c in outputs(n) if c not in hidden]
    last = isinstance(body[-1], ast.Expr) and not ast.unparse(body[-1]).startswith('test_') if body else False
    return bool(hidden) and not shown and not last


def test_what_hangs_on_data_is_found():
    assert hangs_on_data('if shared.exists():\n    display(table)') and hangs_on_data('if shared.exists(): plot_session(bars)\nprint(1)')
    assert not hangs_on_data('if shared.exists(): display(1)\nelse: print(2)') and not hangs_on_data('if shared.exists(): test_eq(1, 1)\ntable')


@pytest.mark.parametrize('path', notebooks, ids=lambda p: p.name)
def test_every_figure_is_shown_without_the_real_data(path):
    assert not [source for source in cells(path) if hangs_on_data(source)]


@pytest.mark.parametrize('path', modules, ids=lambda p: p.stem)
def test_text_files_name_their_encoding(path):
    "Windows would take its own."
    tree = ast.parse(path.read_text(encoding='utf-8'))
    bare = [c for c in calls(tree, 'read_text', 'write_text', 'open') if isinstance(c.func, ast.Name) or c.func.attr != 'open']
    binary = [c for c in bare if any('b' in str(getattr(a, 'value', '')) for a in c.args[1:2])]
    assert not [ast.unparse(c) for c in bare if c not in binary and not any(k.arg == 'encoding' for k in c.keywords)]


@pytest.mark.parametrize('path', modules, ids=lambda p: p.stem)
def test_modules_of_one_system_are_asked_for_with_care(path):
    "Such an import stands in a `try`, and says what happens without it."
    tree = ast.parse(path.read_text(encoding='utf-8'))
    guarded = {n for t in ast.walk(tree) if isinstance(t, ast.Try) for n in ast.walk(t)}
    found = [n for n in ast.walk(tree) if isinstance(n, (ast.Import, ast.ImportFrom)) and n not in guarded]
    assert not [ast.unparse(n) for n in found if {a.name for a in n.names} & SYSTEM or getattr(n, 'module', '') in SYSTEM]
    assert not calls(tree, 'fork', 'getuid', 'geteuid', 'mkfifo')


def test_the_workflow_runs_ci_and_the_notebooks():
    workflow = yaml.safe_load((root/'.github/workflows/test.yml').read_text(encoding='utf-8'))
    assert set(workflow[True]) >= {'push', 'pull_request'}  # YAML reads `on` as a truth value
    steps = {name: [step.get('run') or step['uses'] for step in job['steps']] for name, job in workflow['jobs'].items()}
    assert steps['whole'][-1] == '.ci/run' and workflow['jobs']['whole']['runs-on'].startswith('ubuntu')
    assert steps['notebooks'][-1].startswith('nbdev_test') and {s.split('-')[0] for s in workflow['jobs']['notebooks']['strategy']['matrix']['os']} == {'windows', 'macos'}
    uses = [step for each in steps.values() for step in each if step.startswith('actions/')]
    assert uses and all(re.fullmatch(r'actions/[a-z-]+@v\d+', step) for step in uses)


def test_the_script_that_it_runs():
    "The two commands are found in the README, once each, and the notebooks that read real data are told by their code."
    script, readme = (root/'.ci/run').read_text(encoding='utf-8'), (root/'README.md').read_text(encoding='utf-8').splitlines()
    for pattern in re.findall(r"'(\^pip[^']+)'", script): assert len([line for line in readme if re.match(pattern, line)]) == 1
    named = subprocess.run([sys.executable, root/'.ci/with_shared.py'], capture_output=True, text=True, check=True).stdout.strip()
    assert re.match(named, '01_vpoc.ipynb') and re.match(named, 'can_you_trust_it.ipynb') and not re.match(named, '00d_storage.ipynb')
