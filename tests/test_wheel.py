"""A wheel works where there is no repository beside it."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

root = Path(__file__).parents[1]


def test_wheel_runs_on_the_sample_market(tmp_path):
    source, site, away = (tmp_path/n for n in ('source', 'site', 'away'))
    source.mkdir(), away.mkdir()
    for name in ('setup.py', 'settings.ini', 'README.md', 'LICENSE'): shutil.copy(root/name, source)
    shutil.copytree(root/'vpoc_backtest', source/'vpoc_backtest', ignore=shutil.ignore_patterns('__pycache__'))
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
    subprocess.run([*pip, 'wheel', '-q', '--no-deps', '-w', tmp_path, source], check=True, timeout=300)
    subprocess.run([*pip, 'install', '-q', '--no-deps', '--target', site, next(tmp_path.glob('*.whl'))], check=True, timeout=300)
    env = {**os.environ, 'PYTHONPATH': str(site)}
    where = subprocess.run([sys.executable, '-c', 'import vpoc_backtest; print(vpoc_backtest.__file__)'], cwd=away, env=env, capture_output=True, text=True)
    assert where.stdout.startswith(str(site))
    done = subprocess.run([sys.executable, site/'bin/vpoc_backtest', '--model', 'none', '--out', 'out'], cwd=away, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert 'Win rate' in done.stdout and (away/'out/report.html').exists()
    assert '"git_revision": null' in (away/'out/manifest.json').read_text()
