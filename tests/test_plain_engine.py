"""Hand-made bars, one small test a rule; at the end a random stress on the conservation laws."""
import random

import pandas as pd
import pytest
from plain_engine import plain_backtest

D1, D2, D3, D4 = "2024-01-02", "2024-01-03", "2024-01-04", "2024-01-05"
QUIET = (101, 101.5, 100.5, 101)          # a bar that touches nothing
FILL = (101, 101, 99.75, 100.5)           # a bar that fills a buy at 100 and no more


def frame(*sessions):
    """sessions: (date, bars) or (date, bars, contract); a bar is (o, h, l, c) or (o, h, l, c, 'ETH')."""
    rows = [dict(zip(("open", "high", "low", "close"), map(float, b[:4])), date=s[0],
                 segment=b[4] if len(b) > 4 else "RTH", contract=s[2] if len(s) > 2 else "H")
            for s in sessions for b in s[1]]
    return pd.DataFrame(rows, index=pd.date_range("2024-01-02", periods=len(rows), freq="30min"))


def buy(date=D1, entry=100., stop=98., target=104., size_factor=1.5):
    return dict(date=date, side=1, entry=entry, stop=stop, target=target, size_factor=size_factor)


def sell(date=D1, entry=100., stop=102., target=96., size_factor=1.5):
    return dict(date=date, side=-1, entry=entry, stop=stop, target=target, size_factor=size_factor)


def turn(row, prices):
    """An order or a trade of the other side, with its prices mirrored about 100."""
    return dict(row, side=-row["side"], **{name: 200 - row[name] for name in prices})


def run(bars, *orders, mirrored=True, **settings):
    """Run; and check that the market upside down gives the same trades (prices mirrored about 100)."""
    def go(bars, orders):
        return plain_backtest(bars, pd.DataFrame(list(orders)), **settings)
    trades, skipped, equity = go(bars, orders)
    if mirrored:
        other = bars.assign(open=200 - bars.open, close=200 - bars.close, high=200 - bars.low,
                            low=200 - bars.high)
        turned = [turn(order, ("entry", "stop", "target")) for order in orders]
        back = [turn(trade, ("entry", "exit")) for trade in go(other, turned)[0]]
        assert back == trades
        assert go(other, turned)[1:] == (skipped, equity)
    return trades, skipped, equity


def one(bars, *orders, **settings):
    (trade,), _, _ = run(bars, *orders, **settings)
    return trade


def reasons(skipped):
    return {s["signal"]: s["reason"] for s in skipped}


def test_1_orders_live_in_their_own_session_and_in_rth_only():
    bars = frame((D1, [(100, 100, 90, 99, "ETH"), QUIET, (100, 100, 90, 99, "ETH"), QUIET]), (D2, [FILL]),
                 (D3, [(100, 100, 90, 99, "ETH")]))
    assert reasons(run(bars, buy(D1), buy(D3), buy("2030-01-01"))[1]) == {
        0: "not reached", 1: "no such session", 2: "no such session"}


def test_2_placement_checks_and_their_order():
    behind, fine = frame((D1, [(98, 99, 97, 98), FILL])), frame((D1, [(98.25, 99, 98.25, 99)]))
    assert reasons(run(behind, buy())[1]) == {0: "stop behind the market"}
    assert run(fine, buy())[0][0]["entry"] == 98.5  # a tick above the stop it is placed (marketable)
    assert reasons(run(behind, buy(size_factor=0.01))[1]) == {0: "stop behind the market"}   # before the size
    assert reasons(run(behind, buy(), initial_capital=0.)[1]) == {0: "no equity left"}       # before both
    assert reasons(run(fine, buy(size_factor=0.01))[1]) == {0: "risk affords no contract"}
    ruin = frame((D1, [FILL, (50, 50, 50, 50)]), (D2, [FILL]))
    trades, skipped, equity = run(ruin, buy(D1), buy(D2), initial_capital=3000., risk_per_trade=0.1,
                                  mirrored=False)
    assert trades[0]["contracts"] == 2 and equity == [3000 - 5035.] * 2
    assert reasons(skipped) == {1: "no equity left"}


def test_2_placement_uses_the_equity_before_the_first_bar_is_traded():
    # held overnight; the loss is taken in D2's first bar, after D2's order was found affordable at its open
    bars = frame((D1, [FILL]), (D2, [(50, 50, 50, 50), FILL]))
    _, skipped, _ = run(bars, buy(D1), buy(D2, stop=49.), hold="overnight", initial_capital=3000.,
                        risk_per_trade=1., overnight_margin=.01)
    assert reasons(skipped) == {1: "no equity left"}           # found at the fill
    bars = frame((D1, [FILL]), (D2, [(50, 50, 50, 50), QUIET]))
    _, skipped, _ = run(bars, buy(D1), buy(D2, stop=49.), hold="overnight", initial_capital=3000.,
                        risk_per_trade=1., overnight_margin=.01, mirrored=False)
    assert reasons(skipped) == {1: "another position open"}    # not 'no equity left': it waited in that bar


@pytest.mark.parametrize("low, through, filled", [
    (100, 1, False), (99.75, 1, True), (100, 0, True), (99.75, 2, False)])
def test_3_the_limit_must_be_traded_through(low, through, filled):
    bars = frame((D1, [(101, 101, low, 100.5)]))
    assert bool(run(bars, buy(), limit_through=through)[0]) is filled


def test_3_a_gap_through_the_limit_fills_at_the_open():
    assert one(frame((D1, [QUIET, (99, 99.5, 98.5, 99)])), buy())["entry"] == 99


@pytest.mark.parametrize("slip, through, fill", [(1, 1, 99.75), (0, 1, 99.5), (2, 3, 100), (5, 0, 100)])
def test_3_a_limit_marketable_when_placed_takes_liquidity(slip, through, fill):
    bars = frame((D1, [(99.5, 99.5, 99.5, 99.5), QUIET]))
    t = one(bars, buy(), slippage_ticks=slip, limit_through=through, mirrored=False)
    assert (t["entry"], t["entry_ts"], t["mfe"]) == (fill, pd.Timestamp("2024-01-02"), max(101.5 - fill, 0))
    assert t["slippage"] == (fill - 99.5 + slip / 4) * t["contracts"] * 50
    assert one(bars, buy(), slippage_ticks=slip, limit_through=through)["entry"] == fill


def test_3_only_the_first_bar_of_its_session_makes_a_limit_marketable():
    night = (99, 99, 99, 99, "ETH")
    bars = frame((D1, [night, QUIET, (99, 99.5, 98.5, 99)]))
    assert one(bars, buy())["entry"] == 99  # at a later bar it rested: the open, no slippage
    at_limit = frame((D1, [(100, 100, 100, 100), QUIET]))      # the open at the limit is not beyond it
    assert run(at_limit, buy())[0] == []
    assert one(at_limit, buy(), limit_through=0)["entry"] == 100


def test_3_a_marketable_limit_comes_first_and_the_next_one_waits():
    bars = frame((D1, [(99.5, 99.5, 98, 99), (99, 99, 96.5, 97), (97, 98, 97, 97.5)]))
    near, far, other = buy(entry=99., stop=97.), buy(entry=101., stop=97.), buy(entry=100., stop=97.)
    trades, skipped, _ = run(bars, near, far, other)
    fills = [(t["signal"], t["entry"], t["exit"]) for t in trades]
    assert fills == [(1, 99.75, 96.75), (0, 97, 96.75)] or skipped
    assert trades[0]["signal"] == 1 and trades[0]["entry"] == 99.75
    # marketable, but another is open: it waits
    held = frame((D1, [FILL]), (D2, [(99, 99, 97, 97), (97.5, 98, 97.5, 98)]))
    trades, skipped, _ = run(held, buy(D1), buy(D2, entry=99.5, stop=95.), hold="overnight", slippage_ticks=2)
    assert [(t["signal"], t["entry"]) for t in trades] == [(0, 100), (1, 97.5)]


def test_market_orders():
    order = {k: v for k, v in buy().items()} | {"entry": float("nan")}
    t = one(frame((D1, [(100.75, 101, 100.5, 101), QUIET])), order)
    assert (t["entry"], t["contracts"], t["exit"]) == (101, 6, 100.75)  # 990 / ((3 + .25) * 50)
    assert t["r_multiple"] == pytest.approx((-.25 * 6 * 50 - 10) / (3 * 6 * 50))
    assert t["slippage"] == .5 * 6 * 50
    flat = lambda p: frame((D1, [(p, p, p, p)]))
    assert reasons(run(flat(98), order)[1]) == {0: "stop behind the market"}
    assert reasons(run(flat(103.75), order)[1]) == {0: "target behind the market"}
    assert reasons(run(flat(104), order)[1]) == {0: "target behind the market"}
    assert one(flat(103.5), order)["entry"] == 103.75
    trades, skipped, _ = run(frame((D1, [FILL, QUIET])), order, order)
    assert len(trades) == 1 and reasons(skipped) == {1: "another position open"}
    held = frame((D1, [FILL]), (D2, [QUIET]))
    trades, skipped, _ = run(held, buy(D1), {**order, "date": D2}, hold="overnight")
    assert len(trades) == 1 and reasons(skipped) == {1: "another position open"}


def test_orders_that_begin_to_work_late():
    bars = frame((D1, [FILL, FILL, (99.5, 101, 99.5, 101), (101, 101, 100.5, 101)]))
    late = lambda k, **kw: buy(**kw) | {"active_from": bars.index[k]}
    t = one(bars, late(2))
    assert (t["entry"], t["entry_ts"]) == (99.75, bars.index[2])  # marketable at the bar from which it works
    assert reasons(run(bars, late(3))[1]) == {0: "not reached"}
    after = buy() | {"active_from": bars.index[3] + pd.Timedelta("1min")}
    assert reasons(run(bars, after)[1]) == {0: "no bar left to work in"}
    behind = frame((D1, [FILL, (98, 101, 98, 100), FILL]))
    assert reasons(run(behind, buy() | {"active_from": behind.index[1]})[1]) == {0: "stop behind the market"}
    trades, skipped, _ = run(bars, buy(), late(1, entry=100.5))  # reached while the first is open
    assert len(trades) == 1 and reasons(skipped) == {1: "another position open"}


def test_6_named_contracts():
    bars = frame((D1, [FILL]))
    named = lambda n, **kw: run(bars, buy() | {"contracts": n}, mirrored=False, **kw)
    assert [named(n)[0][0]["contracts"] for n in (1, 10, float("nan"))] == [1, 10, 8]
    assert reasons(named(11)[1]) == {0: "more contracts than max_contracts"}
    assert reasons(named(5, day_margin=4.)[1]) == {0: "margin affords fewer contracts"}
    assert named(4, day_margin=4.)[0][0]["contracts"] == 4
    assert named(4, risk_per_trade=.00001)[0][0]["contracts"] == 4  # whoever named them chose the risk
    assert reasons(named(4, initial_capital=0.)[1]) == {0: "no equity left"}


def test_3_nearest_limit_first_then_the_earlier_row():
    bars = frame((D1, [QUIET, (101, 101, 98.5, 99), QUIET]))
    trades, skipped, _ = run(bars, buy(entry=99.), buy(entry=100.), buy(entry=100.))
    assert [t["signal"] for t in trades] == [1]
    assert reasons(skipped) == dict.fromkeys((0, 2), "another position open")
    bars = frame((D1, [(100, 101.5, 98.5, 100)]))              # 1 point to the buy, 1 to the sell
    assert [t["signal"] for t in run(bars, sell(entry=101., stop=103.), buy(entry=99., stop=97.))[0]] == [0]
    bars = frame((D1, [(102, 102, 101.5, 102), (99.5, 99.75, 98.5, 99)]))
    assert one(bars, buy(entry=101.25), buy(entry=99.))["signal"] == 1  # opened through 101.25: distance


def test_3_after_an_exit_the_next_fill_is_in_the_next_bar():
    bars = frame((D1, [FILL, (100.5, 100.5, 97, 97.5), (97.5, 98, 96.5, 97.5)]))
    trades, skipped, _ = run(bars, buy(), buy(entry=97.5, stop=95.))  # reached in the exit bar: not filled
    assert [t["signal"] for t in trades] == [0, 1]
    assert trades[1]["entry_ts"] == bars.index[2] and trades[0]["exit_ts"] == bars.index[1]


def test_3_contracts_are_counted_anew_at_the_fill():
    bars = frame((D1, [FILL, (100.5, 100.5, 97, 97.5), (97.5, 98, 96.5, 97.5)]))
    second = buy(entry=97.5, stop=95.5)
    trades, _, _ = run(bars, buy(), second, max_contracts=99, risk_per_trade=.1, mirrored=False)
    assert [t["contracts"] for t in trades] == [88, 79]  # (100 000 -> 90 090)*.1 - 10 over 112.5: 88.8, 79.99
    # 1 000*.125 = 125 affords one contract of 112.5 + 10; after the first loss it affords none
    trades, skipped, _ = run(bars, buy(), second, initial_capital=1000., risk_per_trade=.125)
    assert len(trades) == 1 and reasons(skipped) == {1: "risk affords no contract"}


def test_3_a_fill_without_contracts_uses_up_the_bar():
    bars = frame((D1, [FILL, (100.5, 100.5, 97, 97.5), (97.5, 98, 96.5, 97.5), QUIET]))
    small = buy(entry=97.5, stop=95.5)
    trades, skipped, _ = run(bars, buy(), small, buy(entry=97.25, stop=96.5), initial_capital=1000.,
                             risk_per_trade=.125, max_contracts=1)
    assert len(trades) == 1 and reasons(skipped)[1] == "risk affords no contract"
    assert reasons(skipped)[2] == "another position open"  # (reached in bar 1, in the first trade)
    bars = frame((D1, [FILL, (100.5, 100.5, 98, 98), (97.5, 98, 96.5, 97.5), QUIET]))
    _, skipped, _ = run(bars, buy(), small, buy(entry=97.25, stop=96.5), initial_capital=1000.,
                        risk_per_trade=.125, max_contracts=1)
    assert reasons(skipped) == {1: "risk affords no contract", 2: "not reached"}


def test_4_entry_bar_stop_but_never_target():
    t = one(frame((D1, [(101, 110, 98, 105), QUIET])), buy())
    assert (t["exit"], t["exit_reason"], t["bars"], t["ambiguous"]) == (97.75, "stop", 1, False)
    t = one(frame((D1, [(101, 110, 99, 105), QUIET])), buy())
    assert (t["exit"], t["exit_reason"], t["bars"]) == (100.75, "close", 2)
    t = one(frame((D1, [(101, 110, 98.25, 105)])), buy())
    assert t["exit_reason"] == "close"


def test_4_filled_at_an_open_below_the_stop():
    t = one(frame((D1, [QUIET, (97, 110, 96, 105)])), buy())
    assert (t["entry"], t["exit"], t["exit_reason"], t["mae"], t["mfe"]) == (97, 96.75, "stop", .25, 0)


@pytest.mark.parametrize("bar, exit_price, reason", [
    ((97.5, 99, 97, 98), 97.25, "stop"),            # opens below the stop
    ((98, 110, 97, 98), 97.75, "stop"),             # opens on the stop; what follows does not count
    ((100, 101, 98, 100), 97.75, "stop"),           # touches it
    ((104.25, 105, 97, 100), 104.25, "target"),     # opens a tick through the target; the rest does not count
    ((104, 104.25, 103, 104), 104, "target"),
    ((104, 104, 103, 104), 103.75, "close")])       # touched, not traded through
def test_4_exits_of_a_later_bar(bar, exit_price, reason):
    t = one(frame((D1, [FILL, bar])), buy())
    assert (t["exit"], t["exit_reason"], t["ambiguous"], t["bars"]) == (exit_price, reason, False, 2)


def test_4_target_above_the_limit_when_the_bar_opens_there():
    t = one(frame((D1, [(101, 101, 99.5, 100), (104.25, 104.5, 104, 104)])), buy(), limit_through=2)
    assert (t["exit"], t["exit_reason"]) == (104.25, "target")


def test_4_both_in_one_bar():
    price = {"stop": 97.75, "target": 104}
    for o, path in ((101, "stop"), (101.5, "stop"), (102, "target")):
        bar = (o, 105, 98, 101)
        for mode, reason in (("stop", "stop"), ("target", "target"), ("path", path)):
            t = one(frame((D1, [FILL, bar])), buy(), ambiguous=mode)
            assert t["ambiguous"] and t["exit_reason"] == reason and t["exit"] == price[reason]


def test_5_session_close():
    t = one(frame((D1, [QUIET, FILL, (90, 90, 90, 90, "ETH")])), buy())
    assert (t["exit"], t["exit_reason"], t["bars"]) == (100.25, "close", 1)


def test_5_overnight_is_stopped_in_eth_and_blocks():
    night = (99, 99, 97.5, 98, "ETH")
    bars = frame((D1, [FILL]), (D2, [night, (101, 101, 99, 100)]))
    trades, skipped, equity = run(bars, buy(D1), buy(D2), hold="overnight")
    assert (trades[0]["exit"], trades[0]["exit_ts"]) == (97.75, bars.index[1]) and len(trades) == 2
    bars = frame((D1, [FILL]), (D2, [(101, 101, 99, 100, "ETH"), (101, 101, 99, 100)]))
    trades, skipped, equity = run(bars, buy(D1), buy(D2), hold="overnight")
    assert (trades[0]["exit"], trades[0]["exit_reason"], trades[0]["bars"]) == (99.75, "end", 3)
    assert reasons(skipped) == {1: "another position open"}


def test_5_roll_at_the_last_bar_before_the_next_sessions_date():
    eth = (101, 101, 99, 101.5, "ETH")
    bars = frame((D1, [FILL, eth], "H"), (D2, [eth], "H"), (D3, [eth, QUIET], "M"))      # D2 is no session
    t = one(bars, buy(), hold="overnight")
    assert (t["exit"], t["exit_reason"], t["exit_ts"]) == (101.25, "roll", bars.index[2])
    bars = frame((D1, [FILL, (101, 101, 97, 101, "ETH")], "H"), (D2, [QUIET], "M"))
    assert one(bars, buy(), hold="overnight")["exit_reason"] == "stop"                   # rule 4 goes first
    bars = frame((D1, [FILL], "H"), (D2, [QUIET], "M"))
    assert one(bars, buy(), hold="overnight")["exit_reason"] == "roll"                   # in the entry bar
    assert one(bars, buy())["exit_reason"] == "close"
    assert one(bars.drop(columns="contract"), buy(), hold="overnight")["exit_reason"] == "end"


def test_6_contracts():
    bars = frame((D1, [FILL]))
    n = lambda **kw: one(bars, buy(size_factor=kw.pop("size_factor", 1.5)), mirrored=False, **kw)["contracts"]
    why = lambda **kw: reasons(run(bars, buy(), **kw)[1])[0]
    assert n() == 8                                            # 990 / 112.5 = 8.8
    assert n(commission_per_trade=100.) == 8                   # 900 / 112.5 = 8 exactly
    assert n(commission_per_trade=100.25) == 7
    assert n(fees_per_contract=6.25, commission_per_trade=0.) == 8     # 1000 / 125 = 8 exactly
    assert n(fees_per_contract=6.25, commission_per_trade=.25) == 7
    assert n(slippage_ticks=0) == 9 and n(size_factor=.75) == 4        # 990 / 100; 490 / 112.5
    assert n(risk_per_trade=.02) == 10 and n(risk_per_trade=.02, max_contracts=99) == 17
    assert n(day_margin=4., max_contracts=99) == 4 and n(free_capital=.95, day_margin=1 / 3) == 3
    assert n(day_margin=9., overnight_margin=4., hold="overnight") == 4
    assert why(day_margin=17.) == "margin affords no contract"
    assert why(day_margin=17., risk_per_trade=.001) == "risk affords no contract"        # asked first
    assert why(risk_per_trade=.00001) == "risk affords no contract"                      # a negative budget


def test_7_blocked_or_not_reached():
    trade = [FILL, QUIET, (101, 101, 98.5, 101)]
    second = buy(entry=99., stop=97.)
    assert reasons(run(frame((D1, trade)), buy(), second)[1]) == {1: "another position open"}
    assert reasons(run(frame((D1, trade[:2])), buy(), second)[1]) == {1: "not reached"}
    stopped = (101, 101, 97, 97.5)  # fills, stops, and passes the other limit on the way
    blocked = run(frame((D1, [stopped, QUIET])), buy(), buy(entry=99.5))
    assert reasons(blocked[1]) == {1: "another position open"}
    trades, skipped, _ = run(frame((D1, [stopped, (100, 100, 99, 100)])), buy(), buy(entry=99.5))
    assert len(trades) == 2 and not skipped                    # blocked once, filled later: a trade


def test_8_money():
    t = one(frame((D1, [FILL, (103, 104.5, 103, 104)])), buy(), fees_per_contract=2., mirrored=False)
    assert (t["contracts"], t["gross"], t["costs"], t["net"]) == (8, 1600, 42, 1558)
    assert t["r_multiple"] == pytest.approx(1558 / 800)
    t = one(frame((D1, [QUIET, (99, 99, 98.5, 99)])), buy(), mirrored=False)  # better fill, R from the order
    assert t["r_multiple"] == pytest.approx((-.25 * 8 * 50 - 10) / 800)


@pytest.mark.parametrize("session, mae, mfe", [
    ([(101, 103, 99, 100.5), (101, 102, 100.5, 101)], 1, 2),        # entry bar: low and close; later: high
    ([(101, 103, 99.75, 101.5)], .25, 1.5),                                     # entry bar is the closing bar
    ([FILL, (101, 103.75, 97, 98)], 2.25, .5),                                  # stop: only the exit fill
    ([FILL, (101, 104.25, 98.25, 98.5)], .25, 4),                               # target: only the exit fill
    ([(101, 101, 97.5, 100)], 2.25, 0),                                         # stopped in the entry bar
    ([FILL, (100, 100.25, 98.25, 98.25)], 2, .5)])                  # close: the exit fill counts too
def test_9_excursions(session, mae, mfe):
    t = one(frame((D1, session)), buy())
    assert (t["mae"], t["mfe"]) == (mae, mfe)


def test_10_equity():
    late = (103, 103, 103, 103, "ETH")
    bars = frame((D1, [FILL, late]), (D2, [late]), (D3, [(102, 102, 102, 102)]),
                 (D4, [(102, 103, 102, 103), late]))
    trades, _, equity = run(bars, buy(), hold="overnight", mirrored=False)
    assert equity == [100_000 + .5 * 400, 100_000 + 2 * 400, 100_000 + 2.75 * 400 - 10]
    assert run(bars, buy(), mirrored=False)[2] == [100_000 + .25 * 400 - 10] * 3
    assert run(bars, buy("2030-01-01"))[2] == [100_000] * 3


def random_case(rng):
    price, sessions, contract, dates = 100., [], 0, []
    for d in range(rng.randint(1, 8)):
        contract += rng.random() < .3
        date, bars = f"2024-01-{d + 1:02d}", []
        kinds = ["ETH"] * rng.randint(0, 4) + ["RTH"] * rng.choice([0, 1, 3, 8]) + ["ETH"] * rng.randint(0, 2)
        for kind in kinds:
            o = price + rng.choice([-12, *range(-4, 5), 12]) / 4
            c = o + rng.randint(-8, 8) / 4
            bars.append((o, max(o, c) + rng.randint(0, 8) / 4, min(o, c) - rng.randint(0, 8) / 4, c, kind))
            price = c
        sessions.append((date, bars, f"C{contract}"))
        for _ in range(rng.randint(0, 5)):
            side = rng.choice([1, -1])
            entry = (rng.choice(bars)[0] if bars else price) + rng.randint(-6, 6) / 4
            dates.append(dict(date=date, side=side, entry=entry, stop=entry - side * rng.randint(1, 16) / 4,
                              target=entry + side * rng.randint(1, 16) / 4,
                              size_factor=rng.choice([.1, 1., 1.5]),
                              contracts=rng.choice([float("nan")] * 6 + [1, 3, 12]),
                              late=rng.choice([None] * 4 + [*range(9)])))
            if rng.random() < .15:
                dates[-1]["entry"] = float("nan")
    settings = dict(hold=rng.choice(["session", "overnight"]),
                    ambiguous=rng.choice(["stop", "target", "path"]),
                    limit_through=rng.randint(0, 2), slippage_ticks=rng.randint(0, 2),
                    fees_per_contract=rng.choice([0., 2.]),
                    initial_capital=rng.choice([300., 3000., 20_000., 100_000.]),
                    risk_per_trade=rng.choice([.01, .1, 1.]),
                    day_margin=rng.choice([.001, .1]))
    return frame(*sessions), pd.DataFrame(dates), settings


def with_times(bars, orders):
    """The orders with `active_from` for `late`: so many bars into their session, or half a bar less."""
    if orders.empty or bars.empty:
        return orders
    rth = bars[bars.segment == "RTH"]
    starts = {date: index[0] for date, index in rth.groupby("date").groups.items()}
    step = bars.index[1] - bars.index[0] if len(bars) > 1 else pd.Timedelta("30min")
    times = []
    for date, late in zip(orders.date, orders.late):
        stated = late is not None and late == late and date in starts
        times.append(starts[date] + late * step - step * (late % 2) / 2 if stated else pd.NaT)
    return orders.drop(columns="late").assign(active_from=pd.DatetimeIndex(times, tz=bars.index.tz))


def test_random_conservation_laws():
    rng, seen = random.Random(7), {}
    for _ in range(3000):
        bars, orders, settings = random_case(rng)
        if bars.empty or orders.empty:
            continue
        orders = with_times(bars, orders)
        trades, skipped, equity = plain_backtest(bars, orders, **settings)
        assert sorted(row["signal"] for row in trades + skipped) == list(range(len(orders)))
        rth = bars[bars.segment == "RTH"]
        assert len(equity) == rth.date.nunique()
        if equity:
            assert equity[-1] == pytest.approx(settings["initial_capital"] + sum(t["net"] for t in trades))
        for a, b in zip(trades, trades[1:]):
            assert a["exit_ts"] < b["entry_ts"]
        at = bars.index.get_loc
        for t in trades:
            life, o = bars.iloc[at(t["entry_ts"]):at(t["exit_ts"]) + 1], orders.iloc[t["signal"]]
            first = life.iloc[0]
            assert first.segment == "RTH" and first.date == o.date == t["date"] and t["contracts"] >= 1
            assert t["bars"] == len(life) and t["mae"] >= 0 and t["mfe"] >= 0
            opened = t["side"] * first.open                                     # as a long sees it
            slip = settings["slippage_ticks"] / 4
            works = (bars.date == o.date) & (bars.segment == "RTH") & ~(bars.index < o.active_from)
            placed = bars[works].index[0]
            if pd.isna(o.entry):                                                # a market order
                assert t["side"] * t["entry"] == opened + slip and t["entry_ts"] == placed
            elif t["entry_ts"] == placed and opened < t["side"] * o.entry:      # marketable when placed
                seen["marketable"] = seen.get("marketable", 0) + 1
                assert t["side"] * t["entry"] == min(opened + slip, t["side"] * o.entry)
            else:
                assert t["side"] * (o.entry - t["entry"]) >= 0 and first.low <= t["entry"] <= first.high
            assert t["entry_ts"] >= placed and (pd.isna(o.contracts) or t["contracts"] == o.contracts)
            within = (life.segment == "RTH").all() and life.date.nunique() == 1
            assert settings["hold"] == "overnight" or within
            assert life[life.segment == "RTH"].contract.nunique() == 1
            assert -t["mae"] <= t["side"] * (t["exit"] - t["entry"]) <= t["mfe"]
        kinds = [t["exit_reason"] for t in trades] + [t["ambiguous"] for t in trades]
        for what in kinds + [s["reason"] for s in skipped]:
            seen[what] = seen.get(what, 0) + 1
    print(seen)
    assert {"stop", "target", "close", "roll", "end", True, "no such session", "no equity left",
            "stop behind the market", "risk affords no contract", "margin affords no contract",
            "another position open", "not reached", "marketable",
            "target behind the market", "margin affords fewer contracts", "more contracts than max_contracts",
            "no bar left to work in"} <= set(seen)
