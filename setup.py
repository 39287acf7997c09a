"""Everything this needs to know stands in settings.ini."""
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
parser = ConfigParser(delimiters=['='])
parser.read(here/'settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']
STATUS = {'1': '1 - Planning', '2': '2 - Pre-Alpha', '3': '3 - Alpha', '4': '4 - Beta', '5': '5 - Production/Stable'}
CLASSIFIERS = [
    f"Development Status :: {STATUS[cfg['status']]}",
    'Environment :: Console',
    'Framework :: Jupyter',
    f"Intended Audience :: {cfg['audience']}",
    'Intended Audience :: Financial and Insurance Industry',
    f"Natural Language :: {cfg['language']}",
    'Operating System :: OS Independent',
    *(f'Programming Language :: Python :: {version}' for version in cfg['python_versions'].split()),
    'Topic :: Office/Business :: Financial :: Investment',
    'Topic :: Scientific/Engineering :: Information Analysis',
    'Typing :: Typed',
]

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    keywords=cfg['keywords'],
    author=cfg['author'],
    license='MIT',
    license_files=['LICENSE'],
    classifiers=CLASSIFIERS,
    packages=find_packages(include=[cfg['lib_name']]),
    package_data={cfg['lib_name']: ['py.typed', 'templates/*']},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg['requirements'].split(),
    extras_require={key.removesuffix('_requirements'): value.split() for key, value in cfg.items() if key.endswith('_requirements')},
    entry_points={
        'console_scripts': cfg['console_scripts'].split('\n'),
        'nbdev': [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
    zip_safe=False,
)
