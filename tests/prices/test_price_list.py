"""Prices are looked up by endpoint, model, time and length, and read from files that people write."""

from datetime import UTC, datetime
from decimal import Decimal

import pytest

from llmkit.errors import LLMBadRequest
from llmkit.prices.price_files import read_listed_prices, read_price_file
from llmkit.prices.price_list import LISTED_FROM, PriceList
from llmkit.pricing import list_price
from llmkit.types import Route, TokenUsage

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def write(tmp_path, text, name="own.csv"):
    file = tmp_path / name
    file.write_text(text)
    return file


def test_the_installed_list_has_tiers_and_cached_input():
    book = PriceList(tuple(read_listed_prices({"gemini": "gemini"})))
    low, high = book.tiers("gemini", "gemini-2.5-pro", NOW)
    assert (low.above_input_tokens, high.above_input_tokens) == (0, 200_000)
    assert low.cached_input_usd < low.input_usd < high.input_usd
    assert book.find("gemini", "gemini-2.5-pro", NOW, 200_000) is low
    assert book.find("gemini", "gemini-2.5-pro", NOW, 200_001) is high
    assert book.find("gemini", "unheard-of", NOW, 1) is None
    assert low.source.startswith("litellm ")


def test_a_cost_counts_cached_input_and_reasoning_once(tmp_path):
    (price,) = read_price_file(
        write(tmp_path, "endpoint,model,input_usd,output_usd,cached_input_usd,reasoning_usd\nlab,m,4,8,1,16\n")
    )
    usage = TokenUsage(input_tokens=100, output_tokens=10, cached_input_tokens=40, reasoning_tokens=4)
    assert price.cost(usage) == Decimal(60 * 4 + 40 * 1 + 6 * 8 + 4 * 16) / 1_000_000
    assert price.cost(TokenUsage(input_tokens=1, output_tokens=1)) == Decimal("0.000012")


def test_csv_and_toml_say_the_same(tmp_path):
    table = write(
        tmp_path,
        "endpoint,model,valid_from,input_usd,output_usd,above_input_tokens\nlab,qwen*,2026-01-31,0.1,0.2,\n",
        "p.csv",
    )
    toml = write(
        tmp_path,
        '[[prices]]\nendpoint = "lab"\nmodel = "qwen*"\nvalid_from = 2026-01-31\ninput_usd = 0.1\noutput_usd = 0.20\n',
        "p.toml",
    )
    (a,), (b,) = read_price_file(table), read_price_file(toml)
    assert (a.input_usd, a.output_usd, a.valid_from_utc) == (b.input_usd, b.output_usd, b.valid_from_utc)
    assert a.valid_from_utc == datetime(2026, 1, 31, tzinfo=UTC)


def test_the_nearest_pattern_and_the_latest_price_win(tmp_path):
    text = "endpoint,model,valid_from,input_usd,output_usd\n"
    text += "lab,*,,1,1\nlab,qwen*,,2,1\nlab,qwen*,2026-05-01,3,1\nlab,qwen3,,4,1\n"
    book = PriceList(tuple(read_price_file(write(tmp_path, text))))
    found = [book.find("lab", model, NOW, 0).input_usd for model in ("llama", "qwen2", "qwen3")]
    assert found == [1, 3, 4]
    assert book.find("lab", "qwen2", LISTED_FROM, 0).input_usd == 2
    assert book.find("other", "qwen2", NOW, 0) is None


def test_your_own_price_wins_over_the_list_and_over_free(tmp_path):
    book = PriceList(tuple(read_price_file(write(tmp_path, "endpoint,model,input_usd,output_usd\nollama,*,5,6\n"))))
    assert list_price(Route.parse("ollama/llama3.2")).input_usd == 0.0
    found = list_price(Route.parse("ollama/llama3.2"), own=book)
    assert (found.input_usd, found.most_output_usd, found.is_own) == (5e-6, 6e-6, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("endpoint,model,input_usd\na,b,1\n", "price 1: output_usd is missing"),
        ("endpoint,model,input_usd,output_usd\na,b,x,1\n", "input_usd must be a price"),
        ("endpoint,model,input_usd,output_usd\na,b,-1,1\n", "input_usd must be a price"),
        ("endpoint,model,input_usd,output_usd\na,b,nan,1\n", "input_usd must be a price"),
        ("endpoint,model,input_usd,output_usd,colour\na,b,1,1,red\n", "unknown column 'colour'"),
        ("endpoint;model;input_usd\na;b;1,5\n", "price 1 has more values than columns"),
        ("endpoint,model,input_usd,output_usd,valid_from\na,b,1,1,soon\n", "valid_from must be a date"),
        ("endpoint,model,input_usd,output_usd,above_input_tokens\na,b,1,1,-5\n", "above_input_tokens must be"),
        ("endpoint,model,input_usd,output_usd\na,b,1,1\na,b,2,2\n", "two prices of a/b"),
        ("endpoint,model,input_usd,output_usd\n", "has no prices"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, text, message):
    with pytest.raises(LLMBadRequest, match=message):
        read_price_file(write(tmp_path, text))


def test_a_missing_file_and_broken_toml_are_named(tmp_path):
    with pytest.raises(LLMBadRequest, match="cannot be read"):
        read_price_file(tmp_path / "absent.csv")
    with pytest.raises(LLMBadRequest, match="cannot be read"):
        read_price_file(write(tmp_path, "[[prices", "p.toml"))
