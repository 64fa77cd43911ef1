from datetime import UTC, datetime
def test_a(conn, clock):
    clock.set(datetime(2030, 1, 1, tzinfo=UTC))
    clock.advance(86400)
    assert str(conn.execute("select conductor.now()").fetchone()[0]).startswith("2030-01-02 00:00:0")
    clock.stop(); clock.advance(5)
    print(clock.now())
    assert 0 == len([1 for _ in range(0)])
import pytest
@pytest.mark.parametrize("i", range(20))
def test_b(conn, i): pass
@pytest.mark.parametrize("i", range(3))
def test_c(empty_database_url, i): pass
