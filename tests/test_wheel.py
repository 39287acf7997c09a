"""A release works where there is no repository beside it: wheel and source distribution are built, installed and used."""
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
from configparser import ConfigParser
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

root = Path(__file__).parents[1]
templates = {f'templates/{name}' for name in ('report.html.j2', 'blocks.html.j2', 'report.css', 'chart.js', 'page.js', 'trades.js', 'sessions.css', 'sessions.js', 'report_cells.txt')}
pytest.importorskip('build', reason='no build: pip install -c constraints.txt -e ".[dev]"')


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    "The folder of both distributions; made from a copy, so that the working copy stays as it is."
    source, dist = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('dist')
    for path in root.iterdir():
        if path.is_file(): shutil.copy(path, source)
    for name in ('vpoc_backtest', '.github', 'tests'): shutil.copytree(root/name, source/name, ignore=shutil.ignore_patterns('__pycache__'))
    subprocess.run([sys.executable, '-m', 'build', '-q', '--no-isolation', '-o', dist, source], check=True, timeout=300)
    return dist


def installed(distribution, place):
    "An environment of its own that holds this distribution; what it needs is lent by the environment of the tests."
    context = venv.EnvBuilder(symlinks=os.name != 'nt').ensure_directories(place)
    venv.create(place, symlinks=os.name != 'nt')
    site = Path(sysconfig.get_path('purelib', 'venv', {'base': str(place), 'platbase': str(place)}))
    (site/'lent.pth').write_text('\n'.join(dict.fromkeys(sysconfig.get_path(name) for name in ('purelib', 'platlib'))), encoding='utf-8')
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '--python', context.env_exe, 'install', '-q', '--no-deps', '--no-index']
    subprocess.run([*pip, '--no-build-isolation', distribution], check=True, timeout=300, env=alone())
    return Path(context.bin_path), site


def alone(): return {name: value for name, value in os.environ.items() if name != 'PYTHONPATH'}


def ran(*args, cwd): return subprocess.run(list(map(str, args)), cwd=cwd, env=alone(), capture_output=True, text=True, encoding='utf-8', timeout=300)


@pytest.fixture(scope='module')
def wheel(built, tmp_path_factory): return installed(*built.glob('*.whl'), tmp_path_factory.mktemp('wheel'))


def test_wheel_runs_on_the_sample_market(wheel, tmp_path):
    commands, site = wheel
    where = ran(commands/'python', '-c', 'import vpoc_backtest; print(vpoc_backtest.__file__)', cwd=tmp_path)
    assert where.stdout.startswith(str(site))
    done = ran(commands/'vpoc_backtest', '--model', 'none', '--placebo', 0, '--setups', 0, '--out', 'out', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'Win rate' in done.stdout and (tmp_path/'out/report.html').exists()
    assert '"git_revision": null' in (tmp_path/'out/manifest.json').read_text(encoding='utf-8')


def test_commands_tell_their_version(wheel, tmp_path):
    settings = ConfigParser()
    settings.read(root/'settings.ini', encoding='utf-8')
    for command in ('vpoc_backtest', 'vpoc_train', 'vpoc_evaluate'):
        assert ran(wheel[0]/command, '--version', cwd=tmp_path).stdout.strip() == f'vpoc_backtest {settings["DEFAULT"]["version"]}'


def package_files(site):
    "Paths of the files of the installed package, compiled ones left out."
    package = site/'vpoc_backtest'
    return sorted(p.relative_to(package).as_posix() for p in package.rglob('*') if p.is_file() and '__pycache__' not in p.parts)


def test_source_distribution_installs_the_same_files(built, wheel, tmp_path):
    commands, site = installed(*built.glob('*.tar.gz'), tmp_path/'sdist')
    files = package_files(wheel[1])
    assert files == package_files(site)
    assert {'py.typed', *templates} <= set(files)
    for name in files: assert (site/'vpoc_backtest'/name).read_bytes() == (wheel[1]/'vpoc_backtest'/name).read_bytes()
    done = ran(commands/'vpoc_backtest', '--version', cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_what_a_release_says_of_itself(built, wheel):
    about = PathDistribution(next(wheel[1].glob('vpoc_backtest-*.dist-info')))
    kinds = about.metadata.get_all('Classifier')
    assert 'Typing :: Typed' in kinds and 'Programming Language :: Python :: 3.11' in kinds
    assert about.metadata['License-Expression'] == 'MIT' or about.metadata['License'] == 'MIT'
    assert about.read_text('licenses/LICENSE') == (root/'LICENSE').read_text(encoding='utf-8')
    with tarfile.open(next(built.glob('*.tar.gz'))) as sdist: names = {name.partition('/')[2] for name in sdist.getnames()}
    assert {'settings.ini', 'setup.py', 'pyproject.toml', 'LICENSE', 'README.md', 'constraints.txt'} <= names
    assert tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))['build-system']['build-backend'] == 'setuptools.build_meta'
