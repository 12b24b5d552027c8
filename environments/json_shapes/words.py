"""Words that prompts and demonstrations are made of: keys with values that go with them, topics, lists."""

from __future__ import annotations

VERBS = ("Write", "Create", "Produce", "Make", "Generate", "Return")
TEXTS: dict[str, tuple[str, ...]] = {
    "title": ("Quiet Harbor", "Second Spring", "The Long Road", "Paper Birds", "Night Train", "Open Water"),
    "name": ("Mara Lind", "Tomas Reyes", "Ines Okafor", "Jonas Weber", "Lucia Marin", "Peter Novak", "Aiko Tanaka"),
    "city": ("Lisbon", "Oslo", "Quito", "Nairobi", "Hanoi", "Toronto", "Graz", "Valencia"),
    "country": ("Portugal", "Norway", "Ecuador", "Kenya", "Vietnam", "Canada", "Austria", "Spain"),
    "author": ("E. Marsh", "R. Okoye", "L. Fontaine", "H. Sato", "M. Duarte", "K. Berg"),
    "color": ("red", "dark green", "blue", "ivory", "black", "orange", "silver"),
    "label": ("north wing", "spare part", "new arrival", "weekly plan", "first batch", "sample"),
    "status": ("open", "ready", "delayed", "closed", "in progress", "planned"),
    "category": ("garden", "kitchen", "travel", "office", "sports", "music"),
    "email": ("mara@example.com", "tomas@example.com", "info@example.org", "ines@example.net"),
    "language": ("Spanish", "English", "Swahili", "French", "Korean", "Polish"),
    "brand": ("Norvik", "Solea", "Bramley", "Kestrel", "Tandem", "Orchard"),
    "note": ("Handle with care.", "Bring two copies.", "Check again on Monday.", "Nothing to add.", "Call first."),
    "code": ("A17", "KX-204", "B9", "LM-33", "Q812", "ZT-5"),
    "material": ("oak", "steel", "linen", "glass", "leather", "clay"),
    "owner": ("Ada", "Bruno", "Chen", "Dalia", "Emil", "Farah"),
    "summary": ("Short and clear.", "All went well.", "Some items are late.", "More details follow."),
    "street": ("12 Mill Lane", "4 Harbor Road", "88 Station Street", "7 Elm Court"),
    "department": ("Sales", "Research", "Support", "Finance", "Logistics"),
    "unit": ("kg", "piece", "liter", "box", "meter"),
    "genre": ("jazz", "folk", "drama", "mystery", "history"),
    "phone": ("555-0142", "555-0178", "555-0113", "555-0190"),
    "method": ("card", "cash", "transfer", "voucher"),
    "level_name": ("beginner", "advanced", "expert", "basic"),
    "location": ("shelf 4", "main hall", "room 12", "second floor", "garage"),
}
INTEGERS: dict[str, tuple[int, int]] = {
    "age": (18, 80),
    "quantity": (1, 40),
    "year": (1985, 2026),
    "pages": (40, 600),
    "rank": (1, 20),
    "minutes": (5, 120),
    "votes": (0, 900),
    "stock": (0, 250),
    "priority": (1, 5),
    "floor": (0, 12),
    "seats": (2, 80),
    "points": (0, 100),
    "size": (1, 60),
    "attempts": (1, 9),
    "visitors": (10, 5000),
    "days": (1, 31),
}
NUMBERS: dict[str, tuple[int, int]] = {
    "price": (2, 90),
    "weight": (1, 40),
    "rating": (1, 5),
    "height": (1, 30),
    "distance": (1, 99),
    "temperature": (-5, 35),
    "balance": (10, 900),
    "discount": (0, 40),
    "cost": (3, 300),
    "average": (1, 50),
}
BOOLEANS = (
    *("active", "public", "paid", "verified", "shipped", "urgent", "locked", "available", "in_stock", "approved"),
    *("hidden", "new", "refunded", "enabled", "pinned"),
)
THINGS = (
    *("a parcel", "a museum ticket", "a library loan", "a garden plant", "a used bicycle", "a podcast episode"),
    *("a hotel room", "a train ride", "a pet", "a tool in a shed", "a magazine", "a painting", "a workshop", "a lamp"),
    *("a concert", "a bakery order", "a hiking trail", "a warehouse shelf", "a phone plan", "a gym visit", "a letter"),
)
SUBJECTS: dict[str, tuple[str, ...]] = {
    "gardening": ("soil", "seeds", "sunlight", "watering", "compost", "fence", "pots", "weeds"),
    "cooking": ("salt", "oven", "pan", "boiling", "flour", "herbs", "oil", "leftovers"),
    "cycling": ("tires", "brakes", "helmet", "chain", "saddle", "lights", "pedals", "bell"),
    "school": ("homework", "lessons", "breaks", "exams", "library", "sports_hall", "bus", "uniform"),
    "a house": ("roof", "windows", "heating", "kitchen", "cellar", "balcony", "doors", "stairs"),
    "the sea": ("waves", "tide", "salt", "harbor", "fish", "wind", "beach", "islands"),
    "work": ("meetings", "deadlines", "emails", "overtime", "coffee", "tasks", "holidays", "team"),
    "photography": ("lens", "flash", "tripod", "zoom", "battery", "focus", "filter", "exposure"),
}
SHORT_TEXTS = ("good", "low", "high", "ready", "daily", "weekly", "small", "large", "old", "new", "rarely", "often")
TOPICS: dict[str, tuple[str, ...]] = {
    "vegetables": ("carrot", "onion", "spinach", "potato", "leek", "pumpkin", "celery", "beet", "pea"),
    "birds": ("sparrow", "owl", "heron", "robin", "swan", "eagle", "crow", "finch", "stork"),
    "flowers": ("rose", "tulip", "daisy", "lily", "iris", "poppy", "orchid", "violet", "peony"),
    "rivers": ("Danube", "Nile", "Rhine", "Amazon", "Volga", "Ganges", "Mekong", "Loire", "Niger"),
    "tools": ("hammer", "saw", "pliers", "drill", "wrench", "chisel", "level", "file", "clamp"),
    "kinds of tree": ("oak", "pine", "birch", "maple", "willow", "ash", "cedar", "elm", "larch"),
    "spices": ("cumin", "pepper", "saffron", "paprika", "nutmeg", "clove", "ginger", "basil", "thyme"),
    "pieces of furniture": ("table", "chair", "shelf", "sofa", "bed", "desk", "stool", "cabinet", "bench"),
    "jobs": ("baker", "nurse", "pilot", "teacher", "plumber", "farmer", "tailor", "judge", "driver"),
    "kinds of weather": ("rain", "snow", "fog", "hail", "storm", "sunshine", "drizzle", "wind", "frost"),
    "first names": ("Anna", "Ben", "Clara", "David", "Elena", "Felix", "Grace", "Hugo", "Iris"),
    "metals": ("iron", "copper", "gold", "silver", "tin", "zinc", "nickel", "lead", "cobalt"),
    "sports": ("tennis", "rowing", "judo", "soccer", "fencing", "golf", "hockey", "skiing", "boxing"),
    "languages": ("Spanish", "Hindi", "Greek", "Welsh", "Korean", "Swahili", "Polish", "Arabic", "Dutch"),
    "desserts": ("pudding", "sorbet", "brownie", "tart", "custard", "cheesecake", "trifle", "mousse", "cake"),
    "clothes": ("shirt", "coat", "scarf", "hat", "sock", "skirt", "glove", "jacket", "belt"),
}
MAPPINGS: dict[tuple[str, str], dict[str, str]] = {
    ("weekday abbreviations", "the full names of the days"): {
        **{"Mon": "Monday", "Tue": "Tuesday", "Wed": "Wednesday", "Thu": "Thursday", "Fri": "Friday"},
        **{"Sat": "Saturday", "Sun": "Sunday"},
    },
    ("month abbreviations", "the full names of the months"): {
        **{"Jan": "January", "Feb": "February", "Mar": "March", "Apr": "April", "Jun": "June", "Jul": "July"},
        **{"Aug": "August", "Sep": "September"},
    },
    ("language codes", "the languages"): {
        **{"en": "English", "fr": "French", "de": "German", "es": "Spanish", "pt": "Portuguese", "it": "Italian"},
        **{"pl": "Polish", "nl": "Dutch"},
    },
    ("airport codes", "the cities they serve"): {
        **{"LHR": "London", "CDG": "Paris", "JFK": "New York", "MAD": "Madrid", "FCO": "Rome", "HND": "Tokyo"},
        **{"YYZ": "Toronto", "LIS": "Lisbon"},
    },
    ("file extensions", "the kind of file"): {
        **{"txt": "plain text", "png": "image", "mp3": "audio", "csv": "table", "pdf": "document", "zip": "archive"},
        **{"py": "Python source", "mp4": "video"},
    },
    ("computer acronyms", "what they stand for"): {
        **{"CPU": "central processing unit", "RAM": "random access memory", "URL": "uniform resource locator"},
        **{"USB": "universal serial bus", "LAN": "local area network", "SSD": "solid state drive"},
        **{"HTTP": "hypertext transfer protocol"},
    },
    ("Roman numerals", "the number words"): {
        **{"I": "one", "II": "two", "III": "three", "IV": "four", "V": "five", "VI": "six", "IX": "nine", "X": "ten"},
    },
    ("chess letters", "the names of the pieces"): {
        **{"K": "king", "Q": "queen", "R": "rook", "B": "bishop", "N": "knight", "P": "pawn"},
    },
}
DOCUMENTS: dict[str, tuple[str, ...]] = {
    "a travel report": ("route", "costs", "weather", "lodging"),
    "a repair order": ("customer", "device", "parts", "payment"),
    "a lease": ("tenant", "property", "terms", "deposit"),
    "a lab report": ("sample", "method", "results", "review"),
    "a delivery note": ("sender", "receiver", "goods", "transport"),
    "a medical record": ("patient", "visit", "treatment", "insurance"),
    "a newsletter": ("masthead", "lead", "calendar", "imprint"),
    "an incident": ("reporter", "timeline", "impact", "resolution"),
}
SERVICES: dict[str, tuple[str, ...]] = {
    "a mail server": ("tls", "queue", "limits"),
    "a search index": ("storage", "logging", "cluster"),
    "a backup job": ("schedule", "encryption", "retention"),
    "a chat bot": ("model", "memory", "logging"),
    "a video player": ("subtitles", "cache", "controls"),
    "a payment gateway": ("auth", "webhooks", "retry"),
    "a file server": ("auth", "quota", "tls"),
    "a game server": ("match", "security", "metrics"),
}
SETTINGS: dict[str, tuple[str | int | bool, ...]] = {
    "host": ("localhost", "10.0.0.5", "srv.example.com"),
    "port": (8080, 2525, 9000, 443),
    "timeout": (30, 10, 60),
    "workers": (2, 4, 8),
    "region": ("eu-north", "us-west", "ap-south"),
    "max_size": (1024, 4096, 512),
    "path": ("/var/data", "/srv/files", "/tmp/cache"),
    "interval": (15, 60, 300),
    "mode": ("fast", "safe", "quiet"),
    "retries": (3, 5, 2),
    "enabled": (True, False),
    "verbose": (True, False),
    "level": ("info", "debug", "warning"),
}
GROUPS: dict[str, str] = {
    "a choir": "singers",
    "a toolbox": "tools",
    "a zoo": "animals",
    "a bookshelf": "books",
    "a delivery van": "parcels",
    "a film festival": "films",
    "a market": "stalls",
    "a hospital ward": "patients",
    "a fleet": "ships",
    "a photo album": "photos",
    "a study plan": "sessions",
    "a harbor": "boats",
}
