from selfprune.search.loop import Search


def run_search(proposer, racer, archive, config, *args, **options):
    """The candidates of a search that is begun and ends with the limits of one config."""
    search = Search(proposer, racer, archive, *args, **options)
    search.go_on(config)
    return search.candidates
