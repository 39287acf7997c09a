"""Every result comes with the checks that could refute it. `import vpoc_backtest as vb` gives the names of daily use; each module is loaded when one of its names is touched."""
__version__ = "0.1.0"

import importlib
import sys
import types

TYPE_CHECKING = False  # type checkers take it for true and follow these imports; nothing is imported here when a program runs
if TYPE_CHECKING:
    from .backtest import BacktestConfig, BacktestResult, compare, run_backtest
    from .data import (BadData, ContractSpec, ES, MES, MNQ, NQ, add_sessions, check_bars, front_month, random_walk, read_bars, read_vix, roll_table,
                       sample_market)
    from .evidence import check_causality, examine, placebo_test
    from .explore import explore
    from .features import FilterConfig, make_features
    from .ml_backtest import RunConfig, load_market, load_run, run_all, save_run
    from .quality import data_quality
    from .report import save_report
    from .signals import SignalRules, explain_signals, make_signals
    from .sweeps import sweep
    from .verdict import recommendation, verdict, verdict_error_rates
    from .vpoc import plot_profile, session_levels

_HOMES = {
    'backtest': 'BacktestConfig BacktestResult compare run_backtest',
    'data': 'BadData ContractSpec ES MES MNQ NQ add_sessions check_bars front_month random_walk read_bars read_vix roll_table sample_market',
    'evidence': 'check_causality examine placebo_test',
    'explore': 'explore',
    'features': 'FilterConfig make_features',
    'ml_backtest': 'RunConfig load_market load_run run_all save_run',
    'quality': 'data_quality',
    'report': 'save_report',
    'signals': 'SignalRules explain_signals make_signals',
    'sweeps': 'sweep',
    'verdict': 'recommendation verdict verdict_error_rates',
    'vpoc': 'plot_profile session_levels'}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}
__all__ = ['__version__', *sorted(_HOME)]


def __getattr__(name):
    "Load the module of a name of daily use when the name is first touched."
    if name not in _HOME: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = globals()[name] = getattr(importlib.import_module(f'{__name__}.{_HOME[name]}'), name)
    return value


def __dir__(): return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    "A package in which `explore` is the function, although a module has the same name and Python would put the module there."

    def __setattr__(self, name, value):
        if _HOME.get(name) == name and isinstance(value, types.ModuleType): value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
