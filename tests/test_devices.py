"Levels on a graphics card: the bits of the processor. Trades are counted on PyTorch's processor device as well; the rest is skipped where there is no card."
import numpy as np
import pandas as pd
import pytest
import torch

from vpoc_backtest import profiles, trades
from vpoc_backtest.data import BadData, random_walk
from vpoc_backtest.profiles import _SEGMENTS, _SPREADS, volume_profiles
from vpoc_backtest.trades import profile_from_trades, session_levels_of_trades
from vpoc_backtest.vpoc import LevelConfig, session_levels

cards = torch.cuda.device_count()
card = pytest.mark.skipif(not cards, reason='PyTorch sees no graphics card (CUDA or ROCm) on this machine')


@card
@pytest.mark.parametrize('spread', _SPREADS)
@pytest.mark.parametrize('device', ['cuda', 'cuda:0'])
def test_card_gives_the_bits_of_the_processor(spread, device):
    bars = random_walk(200, bars_per_session=390)
    bars['volume'] *= np.where(np.arange(len(bars)) % 997, 1, 1000)
    assert (volume_profiles(bars, spread=spread, device=device).units == volume_profiles(bars, spread=spread).units).all()
    assert session_levels(bars, spread=spread, device=device).equals(session_levels(bars, spread=spread))


@card
def test_card_counts_trades():
    bars = random_walk(20)
    trades = bars.reset_index(names='ts').rename(columns={'close': 'price', 'volume': 'size'})
    assert (profile_from_trades(trades, device='cuda').units == profile_from_trades(trades).units).all()


@pytest.mark.skipif(bool(cards), reason='there is a graphics card')
@pytest.mark.parametrize('device', ['cuda', 'cuda:1'])
def test_without_a_card_one_sentence_says_so(device):
    with pytest.raises(ValueError, match="PyTorch sees no graphics card here: use device='cpu'"): session_levels(random_walk(2), device=device)


@pytest.fixture(params=['PyTorch on the processor', pytest.param('cuda', marks=card)])
def condensed(request, monkeypatch):
    "Whether each batch was condensed, as they come; `device='cuda'` is a card, or two devices of PyTorch that are the processor."
    made, condense = [], trades._condense
    def note(*args):
        few = condense(*args)
        made.append(few is not None)
        return few
    monkeypatch.setattr(trades, '_condense', note)
    if request.param != 'cuda':
        for module in (profiles, trades):
            monkeypatch.setattr(module, '_devices', lambda device, n: [] if device == 'cpu' else ['cpu', 'cpu'])
    return made


def both_ways(path, levels=LevelConfig(), front=None):
    found = session_levels_of_trades(path, levels, front=front, device='cuda')
    pd.testing.assert_frame_equal(found, session_levels_of_trades(path, levels, front=front), check_exact=True)
    for segment in _SEGMENTS if front is None else ():
        card, loop = (profile_from_trades(path, segment=segment, device=device) for device in ('cuda', 'cpu'))
        assert (card.units == loop.units).all() and (card.low == loop.low).all() and card.dates.equals(loop.dates)
    return found


def refused(path, said):
    "Why trades are refused: the same words with a device and without."
    errors = []
    for device in ('cpu', 'cuda'):
        with pytest.raises(BadData, match=said) as error: session_levels_of_trades(path, LevelConfig('all'), device=device)
        errors.append(str(error.value))
    assert errors[0] == errors[1]
    return errors[0]


def some_trades(seed, n=30_000, sessions=8):
    "Trades of some days at every hour, many at the same time, some of them far from the others."
    rng = np.random.default_rng(seed)
    at = np.datetime64('2019-03-06', 'ns') + rng.integers(0, sessions * 86_400 // 5, n) * np.timedelta64(5, 's')  # through a change of the clocks
    tick = 11_000 + np.cumsum(rng.integers(-1, 2, n)) + np.where(rng.random(n) < .001, rng.integers(-9000, 9000, n), 0)
    return pd.DataFrame({'ts': pd.DatetimeIndex(at, tz='UTC'), 'price': tick / 4, 'size': rng.integers(1, 100, n)})


def write_files(trades, folder, rng):
    folder.mkdir()
    for i, part in enumerate(np.array_split(rng.permutation(len(trades)), 4)): trades.iloc[part if i % 2 else np.sort(part)].to_parquet(folder/f'{i}.parquet')
    return folder


@pytest.mark.parametrize('seed', range(4))
def test_trades_give_the_bits_of_the_loop(condensed, tmp_path, seed):
    trades = some_trades(seed).assign(size=lambda t: t['size'].astype(['int64', 'int32', 'uint32', 'float64'][seed]))
    folder = write_files(trades, tmp_path/'trades', np.random.default_rng(seed))
    for segment in _SEGMENTS: both_ways(folder, LevelConfig(segment, poc=['peak', 'cluster'][seed % 2], area=['single', 'pairs'][seed // 2], smooth=[1, 3][seed % 2]))
    assert all(condensed) and len(condensed) == 4 * 12


def test_trades_of_several_contracts(condensed, tmp_path):
    names = ['ESH9', 'ESM9', 'ESU9']
    trades = pd.concat([some_trades(7 + i).assign(contract=name) for i, name in enumerate(names)])
    folder = write_files(trades, tmp_path/'trades', np.random.default_rng(7))
    dates = pd.date_range('2019-03-07', '2019-03-13')
    front = pd.DataFrame({'date': dates, 'contract': [f'ES {month}-19' for month in ('03', '03', '03', '06', '06', '06', '12')], 'offset': np.arange(7.)})
    for segment in _SEGMENTS:
        found = both_ways(folder, LevelConfig(segment), front)
        assert found.contract.unique().tolist() == ['ES 03-19', 'ES 06-19'] and found.index.max() == dates[5], 'of the last contract there is no trade'
    assert all(condensed) and len(condensed) == 3 * 4
    with pytest.raises(BadData, match='trades of another contract: give front'): session_levels_of_trades(folder, device='cuda')


@pytest.mark.parametrize('column, value, said', [('price', 2000.1, 'off the tick grid'), ('price', -1., 'no positive number'), ('size', -2, 'the size is negative'), ('size', 2.5, 'no whole number of contracts'), ('size', 1e20, 'the size is above'), ('size', np.inf, 'the size is above'), ('ts', pd.Timestamp('1980-01-01', tz='UTC'), 'outside 1990 to 2100'), ('price', 4e5, 'a million ticks')])
def test_what_is_no_trade_is_named_in_the_same_words(condensed, tmp_path, column, value, said):
    trades = some_trades(1).astype({'size': float})
    trades.loc[[20_000, 20_007], column] = value
    folder = write_files(trades, tmp_path/'trades', np.random.default_rng(1))
    assert 'row' in refused(folder, said)


def test_files_that_do_not_go_together_are_named_in_the_same_words(condensed, tmp_path):
    "Each would do by itself; the second one's first trades are of a day that the first one lacks, so that its fault lies further on."
    first, second = (some_trades(seed, n=4000).sort_values('ts') for seed in (3, 4))
    first = first[first.ts >= '2019-03-09']
    for name, other, said in (('contract', second.assign(contract='ESM9'), 'trades of another contract'), ('price', second.assign(price=second.price + 300_000), 'a million ticks')):
        folder = tmp_path/name
        folder.mkdir()
        first.assign(contract='ESH9').to_parquet(folder/'0.parquet')
        (other if name == 'contract' else other.assign(contract='ESH9')).to_parquet(folder/'1.parquet')
        assert '1.parquet, row ' in refused(folder, said) and condensed[-2:] == [True, True]


def test_the_first_fault_is_told_though_a_later_file_cannot_be_read(condensed, tmp_path):
    trades = some_trades(5, n=100)
    trades.assign(price=trades.price.where(trades.index != 50, 2000.1)).to_parquet(tmp_path/'0.parquet')
    trades.assign(price=trades.price.where(trades.index != 3)).to_parquet(tmp_path/'1.parquet')
    assert '0.parquet, row 51' in refused(tmp_path, 'off the tick grid')


def test_an_unusual_batch_goes_through_the_loop(condensed, tmp_path):
    trades = some_trades(2)
    trades.loc[5, 'size'] = 0
    for i in range(3): trades[i * 10_000:][:10_000].to_parquet(tmp_path/f'{i}.parquet')
    both_ways(tmp_path)
    assert condensed == [False, True, True] * 4


def test_few_batches_are_held_at_once(condensed, monkeypatch, tmp_path):
    held, most, batches = set(), [], trades._trade_batches
    def note(files):
        for file, row, batch in batches(files):
            held.add(file)
            most.append(len(held))
            yield file, row, batch
    add = trades._add_trades
    monkeypatch.setattr(trades, '_trade_batches', note)
    monkeypatch.setattr(trades, '_add_trades', lambda *args: held.discard(args[-1].file) or add(*args))
    for i in range(20): some_trades(i, n=100).to_parquet(tmp_path/f'{i:02}.parquet')
    both_ways(tmp_path)
    assert max(most) <= 1 + max(2, cards) and not held


def test_what_is_chosen_is_told(capsys, tmp_path):
    some_trades(0).to_parquet(tmp_path/'trades.parquet')
    session_levels_of_trades(tmp_path, device='auto')
    assert capsys.readouterr().out == "device='auto': 30,000 bars or trades on the processor\n"
    with pytest.raises(ValueError, match="device='gpu' is not known"): session_levels_of_trades(tmp_path, device='gpu')


def test_files_with_and_without_a_contract(condensed, tmp_path):
    "Contracts are chosen file by file: one in the middle that names none changes nothing for those behind it."
    trades, folder = some_trades(3).sort_values('ts', kind='stable', ignore_index=True), tmp_path/'trades'
    folder.mkdir()
    for i in range(3):
        part = trades[i * 10_000:][:10_000]
        other = part.assign(contract='ESM9', price=part.price + 5)
        (part if i == 1 else pd.concat([part.assign(contract='ESH9'), other])).to_parquet(folder/f'{i}.parquet')
    trades.to_parquet(tmp_path/'one_contract.parquet')
    front = pd.DataFrame({'date': pd.date_range('2019-03-06', '2019-03-14'), 'contract': 'ES 03-19'})
    found, wanted = both_ways(folder, LevelConfig('all'), front), session_levels_of_trades(tmp_path/'one_contract.parquet', LevelConfig('all'))
    assert len(found) == len(wanted) > 4 and (found[['volume', 'vpoc', 'val', 'vah', 'n_bars']] == wanted[['volume', 'vpoc', 'val', 'vah', 'n_bars']]).all(axis=None)
