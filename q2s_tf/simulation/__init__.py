"""A simulated marketplace: the catalogue and search log that q2s_tf trains on when it is given no other.

What is modelled
    *Listings.* 140 things in 28 departments, each plain or with one of its department's modifiers: 615 product types
    ("chair", "garden chair"), with a colour, size, brand, condition and material. The nouns, modifiers and attribute
    values were written down by hand in English, Spanish, German, Japanese and Arabic, with synonyms (lexicon.toml); a
    type's name is composed of them by each language's rule (before, after, or a German compound), so no name was
    checked as a whole. Brands are put together from syllables. Seven countries have a mix of languages each.
    *Texts.* Titles hold the type and some attributes in the language's order; 45% do not say what is sold ("Must go
    this week"), 12% are stuffed with names of other things, some have typos, capitals, no accents, or full-width
    letters. Japanese has no spaces between words. Descriptions (30% missing) add attributes, at times name the type by
    another synonym, and mention things and colours that are not for sale. Language and country are missing at times.
    *Photos.* 0 to 5 vectors per listing, none for 15%: department, thing, modifier and colour plus noise. Half of
    the listings write their colour nowhere and at most show it; one in eighteen neither names nor shows what it is.
    *Shoppers.* Sessions through the day, of one to three searches, in which the same wish is often put in more words.
    Wishes start from a listing of the shopper's country, by a Zipf law over product types. Queries name a thing (some
    of them only its first letters), a type, or a type with one to three attributes, with synonyms and typos; one in
    ten is in English wherever the shopper lives. About a quarter of the good pairs are cross-lingual.
    *The engine behind the log.* Lexical matching of words, a dictionary, popularity and much noise: a third of
    what it shows is exactly right (8,000 listings; more with more).
    *Clicks, messages, replies.* Attention falls with rank (r^−0.6); shoppers also click, and even write about, what
    they did not ask for; sellers answer, late, or never. The share of (query, listing) pairs that are exact matches
    grows along the funnel, roughly (8,000 listings): 1/3 of the shown, 0.68 of the clicked, 0.87 of the messaged,
    0.92 of those answered within 24 hours of the search. `make_marketplace` returns the measured shares.
    *The log's flaws.* Rows written twice, rows out of order, chains without a ``search_id``, null users and subjects,
    unknown events, times in the far future; the log ends in the middle of conversations.
    *Raters.* Four grades (3 exact, 2 substitute, 1 complement, 0 irrelevant), given by rule from query and listing
    (`q2s_tf.simulation.relevance.grade`), then by three raters who err.

What is not modelled
    Grammar (adjectives do not agree; "silla rojo"), real prose, prices, distance, stock: listings are there from the
    first day to the last and are sold to many. Shoppers have no taste beyond what they type and learn nothing. No
    seasons, trends or new words; photos are independent draws, not pictures. A word means one thing. So absolute
    figures measured here say little about a real market; differences between models and the way of the data do.
"""

from q2s_tf.simulation.generate import MIN_LISTINGS, START, Summary, make_marketplace

__all__ = ["MIN_LISTINGS", "START", "Summary", "make_marketplace"]
